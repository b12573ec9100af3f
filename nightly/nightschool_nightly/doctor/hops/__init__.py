"""The hops that the marked request goes through: what each looks at, and what to do when it is broken."""
