"""OTLP values and bytes, as every part reads and writes them."""
