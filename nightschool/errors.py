"""Every error nightschool raises on purpose.

Each also inherits the standard library's error of its kind, so that code which knows nothing of nightschool can catch
it too. A message says what was got, what is allowed and what to do.

    NightschoolError
    ├── ConfigError (ValueError)            nightschool.toml or an argument
    ├── RubricError (ValueError)            a rubric file
    ├── RecordError (ValueError)            a span, outcome or record that can never be understood
    ├── MissingExtraError (ImportError)     a service was started without its extra
    ├── StreamError (OSError)
    │   ├── StreamUnavailable               try again: nothing was acknowledged
    │   └── DataLossError                   records a night needs are gone, or the topic was created anew
    ├── RegistryError (OSError)
    │   ├── PointerConflict                 somebody else has moved the pointer meanwhile
    │   └── ReleaseRejected                 a release that must not be loaded
    └── NightError (RuntimeError)           a night that stopped; the registry is as it was
"""

from __future__ import annotations


class NightschoolError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(NightschoolError, ValueError):
    """A setting is unknown, missing or out of range."""


class RubricError(NightschoolError, ValueError):
    """A rubric file cannot be used."""


class RecordError(NightschoolError, ValueError):
    """A record can never be understood; sending it again does not help."""


class MissingExtraError(NightschoolError, ImportError):
    """A part was started without the packages it needs."""

    def __init__(self, part: str, extra: str, missing: str) -> None:
        super().__init__(f"{part} needs the package {missing!r}, which is not installed: pip install 'nightschool[{extra}]'")


class StreamError(NightschoolError, OSError):
    """The stream could not do what was asked."""


class StreamUnavailable(StreamError):  # noqa: N818 - named by what happened
    """The stream cannot be written or read now. Nothing of the call was acknowledged; try again."""


class DataLossError(StreamError):
    """Records that a night needs have expired, or the topic was deleted and created again."""


class RegistryError(NightschoolError, OSError):
    """The registry could not do what was asked."""


class PointerConflict(RegistryError):  # noqa: N818 - named by what happened
    """The pointer was moved between the reading and the writing of it."""


class ReleaseRejected(RegistryError):  # noqa: N818 - named by what happened
    """A release is damaged, belongs to another tenant or does not fit the base model; it is never loaded."""


class NightError(NightschoolError, RuntimeError):
    """A night stopped; nothing was published."""


def shown(value: object) -> str:
    """`value` as a message shows it: its repr, cut to 80 characters. It never raises."""
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):  # an int of over 4,300 digits, or lists nested too deeply
        return f"of type {type(value).__name__} and too large to print"
