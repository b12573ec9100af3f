"""Step 7 of a night: whether the candidate is better, on the prompts of held-out users."""
