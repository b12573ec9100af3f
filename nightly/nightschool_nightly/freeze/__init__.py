"""Step 1 of a night: what it reads, and everything else that decides, is written down before it reads anything."""
