"""Step 2 of a night, first half: records of the stream become episodes with their outcomes."""
