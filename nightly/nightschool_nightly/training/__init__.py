"""Step 5 of a night, GRPO: from scored groups to a changed adapter, with the batch packed as one token tree."""
