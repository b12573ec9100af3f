"""The collector: takes OTLP and outcomes in and stores them in the stream, acknowledged only when durable."""
