"""GRPO on a packed token tree."""
