"""The rules of a tenant: what is looked for, what is never replaced, and what is always replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nightschool.errors import ConfigError, shown
from nightschool.redaction import national_ids
from nightschool.redaction.kinds import DEFAULT_KINDS, KINDS, Span, Trigger
from nightschool.redaction.pattern_cost import compile_safely
from nightschool.redaction.prefilter import EVERYTHING, places_in, triggers_in

ALL_KINDS = (*KINDS, *national_ids.NATIONAL_IDS)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a `Redactor` looks for. Checked when made: `ConfigError` names what is wrong."""

    kinds: Sequence[str] = DEFAULT_KINDS
    """Out of `KINDS`, or national identity numbers like "us-ssn" (extra `pii`). Empty: only `patterns` and `deny`."""
    patterns: Sequence[str] = ()
    """Kinds of your own, each "name: regular expression", for example "ticket: TCK-[0-9]{6}"."""
    allow: Sequence[str] = ()
    """Texts that are never a finding, in upper or lower case; "@example.com" allows every address of that domain."""
    deny: Sequence[str] = ()
    """Texts that always are, as whole words and whatever the case of letters; a project's code name, for example."""
    _own: tuple[tuple[str, re.Pattern[str]], ...] = field(init=False, default=(), repr=False)
    _allowed: frozenset[str] = field(init=False, default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        for name in self.kinds:
            if name not in ALL_KINDS:
                raise ConfigError(f"kind {shown(name)} is unknown; allowed are {', '.join(ALL_KINDS)}")
            if name in national_ids.NATIONAL_IDS:
                national_ids.check_installed(name)
        own = [self._parsed(item) for item in self.patterns]
        for word in (*self.allow, *self.deny):
            if len(word.strip()) < 2:
                raise ConfigError(f"{shown(word)} in allow or deny; allowed are texts of two characters and more")
        if self.deny:
            words = "|".join(re.escape(word.strip()) for word in sorted(self.deny, key=len, reverse=True))
            own.insert(0, (_DENIED, re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)))
        object.__setattr__(self, "_own", tuple(own))
        object.__setattr__(self, "_allowed", frozenset(word.strip().lower() for word in self.allow))

    def _parsed(self, item: str) -> tuple[str, re.Pattern[str]]:
        name, colon, pattern = item.partition(":")
        if not colon or not _NAME.fullmatch(name.strip()):
            raise ConfigError(f"pattern {shown(item)} must be 'name: regular expression', the name of a-z, 0-9 and '-'")
        if name.strip() in (*ALL_KINDS, _DENIED):
            raise ConfigError(f"pattern {shown(item)} has the name of a kind there is; give it another")
        return name.strip(), compile_safely(pattern.strip())

    @property
    def is_off(self) -> bool:
        """Whether there is nothing to look for."""
        return not self.kinds and not self._own

    def may_be_in(self, raw: bytes) -> bool:
        """Whether anything may be found in `raw`, a text or a whole message. False is certain, and found out fast."""
        return not self.is_off and (bool(self._own) or bool(triggers_in(raw)))

    def places_in(self, raw: bytes, *, also: bytes) -> list[tuple[int, int]] | None:
        """Where in a large message something may be found, or the pattern `also`; None when it may be anywhere."""
        return None if self._own else places_in(raw, also=also)

    def find(self, text: str) -> Iterator[tuple[str, Span]]:
        """Every finding with its kind: first the tenant's own rules, then `KINDS` in order, then national numbers."""
        for name, pattern in self._own:
            for match in pattern.finditer(text):
                yield name, (*match.span(), match[0].lower() if name == _DENIED else match[0])
        found = triggers_in(text.encode("utf-8", "surrogatepass"))
        if not found:
            return
        for name, kind in KINDS.items():
            if name in self.kinds and kind.trigger & found:
                yield from ((name, span) for span in kind.find(text) if not self._is_allowed(text, span))
        if found & Trigger.DIGITS or found == EVERYTHING:
            for name in national_ids.NATIONAL_IDS:
                if name in self.kinds:
                    yield from ((name, span) for span in national_ids.find(name, text) if not self._is_allowed(text, span))

    def _is_allowed(self, text: str, span: Span) -> bool:
        if not self._allowed:
            return False
        found = text[span[0] : span[1]].lower()
        return found in self._allowed or span[2].lower() in self._allowed or found[found.rfind("@") :] in self._allowed
