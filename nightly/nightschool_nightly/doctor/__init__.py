"""`nightschool doctor`: one marked request through every hop, and what arrived at each.

The request goes the way an app's goes: our tracer, the collector, the stream, the serving endpoint and back, an outcome, and the
episode builder of the nights. Its task is reserved, and no night learns from it.
"""
