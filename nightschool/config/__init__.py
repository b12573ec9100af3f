"""nightschool.toml: its settings, how it is read, and on which line an error is."""
