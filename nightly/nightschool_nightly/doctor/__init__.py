"""`nightschool doctor`: one marked request through every hop, and what arrived at each.

The request goes the way of an app's request: our tracer, the collector, the stream, the serving endpoint and back, then
an outcome, and at last the episode builder of the nights. Its task is reserved, and no night learns from it.
"""
