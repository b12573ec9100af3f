"""Step 4 of a night: what a good answer is, as weighted items in a file, and the reward of an answer."""
