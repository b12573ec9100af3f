"""What goes over the wire to each endpoint of the OpenAI API, and what of it is recorded."""
