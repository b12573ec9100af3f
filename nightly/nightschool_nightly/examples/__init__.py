"""Step 2 of a night, second half: which episodes it learns from, and which only test the result."""
