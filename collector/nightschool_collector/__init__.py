"""The collector: OTLP and outcomes in over HTTP, records in the stream out, acknowledged only when durable."""
