"""Step 1 of a night: what it reads is written down before it reads anything."""
