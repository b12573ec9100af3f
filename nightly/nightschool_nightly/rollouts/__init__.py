"""Sampling answers from the policy in vLLM."""
