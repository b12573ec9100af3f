"""What `nightschool` starts besides a night."""
