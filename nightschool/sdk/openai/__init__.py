"""The official `openai` client, recorded."""
