"""What the server records of its answers, and how that reaches the collector."""
