"""Serving: vLLM with our endpoint plugin, a tenant guard in front and a replica that follows the registry.

Runs inside vLLM's own API process; see `__main__` for what is started, `guard` for which requests are let in, `routing`
for which release answers, `replica` for how a release arrives and `telemetry` for what is recorded.
"""
