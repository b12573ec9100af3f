"""From messages to durable records of the stream."""
