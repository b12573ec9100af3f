"""What `nightschool episodes` and `nightschool forget` start."""
