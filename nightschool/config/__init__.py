"""nightschool.toml: what can be set, how it is read, and where an error stands."""
