"""Redaction: takes secrets and personal data out of everything recorded, in the app and again in the collector.

What is found is replaced by a pseudonym such as `<EMAIL_3f9a>`: a keyed hash, so that the same address has the same
pseudonym in the prompt, in the answer, and in the correction that comes days later from another system. All other text
stays as it is.

`rules` says what is looked for, and `redactor` replaces it; `otlp` does so in OpenTelemetry messages.
"""

from nightschool.redaction.kinds import DEFAULT_KINDS, KINDS
from nightschool.redaction.rules import ALL_KINDS, Rules

__all__ = ["ALL_KINDS", "DEFAULT_KINDS", "KINDS", "Rules"]
