"""How a release comes from the registry into the engine, and which one answers a request."""
