"""What stands between the socket and vLLM's routes: which connections, requests and bodies are let in."""
