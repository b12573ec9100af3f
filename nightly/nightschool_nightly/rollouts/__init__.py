"""Step 3 of a night: answers sampled from the current policy, in vLLM."""
