"""Serving: vLLM with our endpoint plugin, a tenant guard in front and a replica that follows the registry.

Runs inside vLLM's own API process; see `__main__` for what is started, `front` for which requests are let in, `releases`
for how a release arrives and which one answers, and `telemetry` for what is recorded.
"""
