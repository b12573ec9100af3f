"""Step 3 of a night: which episodes are learned from and which test the result."""
