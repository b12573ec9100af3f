"""The nightly service: a tenant's stream in, a better adapter in the registry out. `night.py` reads top to bottom."""
