"""Splitting and redacting a request, and storing it as durable records of the stream."""
