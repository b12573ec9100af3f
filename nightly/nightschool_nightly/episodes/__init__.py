"""Step 2 of a night: records of the stream become episodes with their outcomes."""
