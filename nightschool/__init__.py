"""nightschool: your production traffic teaches your models while you sleep.

What an app imports. Everything here needs OpenTelemetry only; services are started with the `nightschool` command.
"""
