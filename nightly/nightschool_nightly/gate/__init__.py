"""Is the candidate better, on held-out users?"""
