"""Spans and message events of every dialect, read into one: that of the OpenTelemetry GenAI conventions."""
