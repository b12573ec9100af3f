"""Every dialect that is read. To add one: a file of its own beside this one, its import here, its line below."""

from __future__ import annotations

from nightschool_nightly.dialects.agent_lightning import AGENT_LIGHTNING
from nightschool_nightly.dialects.langfuse import LANGFUSE
from nightschool_nightly.dialects.mlflow import MLFLOW
from nightschool_nightly.dialects.openinference import OPENINFERENCE
from nightschool_nightly.dialects.openllmetry import OPENLLMETRY
from nightschool_nightly.dialects.otel_1_36 import OTEL_1_36
from nightschool_nightly.dialects.vercel import VERCEL

# In order of precedence: where a span speaks two of them, the later one only says what the earlier one leaves unsaid.
# The current conventions of OpenTelemetry are no dialect here: they are what the dialects are read into.
DIALECTS = (
    OTEL_1_36,
    OPENLLMETRY,
    OPENINFERENCE,
    LANGFUSE,
    VERCEL,
    MLFLOW,
    AGENT_LIGHTNING,
)
