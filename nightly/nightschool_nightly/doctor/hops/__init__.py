"""The hops a marked request goes through."""
