"""What is checked before a request is stored: its budget, its size, its encoding and its format."""
