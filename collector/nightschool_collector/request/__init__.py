"""From the bytes of a request to messages that may come in."""
