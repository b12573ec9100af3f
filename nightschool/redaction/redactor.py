"""Replaces what the rules find, in texts, in JSON inside texts, and in outcomes.

A redactor is for one tenant: it has the tenant's rules, and the secret that makes the pseudonyms. Threads may share it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nightschool.errors import RecordError
from nightschool.keys import subject_of
from nightschool.outcomes.fields import MAX_METADATA_BYTES, MAX_TEXT_BYTES
from nightschool.outcomes.record import Outcome, canonical, parse_outcome
from nightschool.redaction.checksums import find_cards
from nightschool.redaction.rules import Rules

VERSION = "1"
"""Increased when the same text is redacted differently; it is on every span that was changed."""

UNREADABLE = "<UNREADABLE>"
"""Stands in place of a text that could not be checked: content that was not checked does not leave."""

_DIGITS = 4  # of the hash in a pseudonym: enough to tell the people of a trace apart, too few to find a person by
_PSEUDONYM = re.compile(r"[0-9a-f]{32}")
_BINARY = re.compile(r"data:[\w.+-]{1,40}/[\w.+-]{1,80};base64,")
Found = Counter[str]


class Redactor:
    """Redacts for one tenant."""

    def __init__(self, rules: Rules, secret: str) -> None:
        """`secret` makes the pseudonyms: with the same one, app and collector give a person the same pseudonym."""
        subject_of(secret, "")  # an empty secret is refused
        self.rules = rules
        self._secret = secret
        self._key = secret.encode("utf-8", "surrogatepass")
        self._counts: Found = Counter()
        self._lock = threading.Lock()
        self._watch: Callable[[Mapping[str, int]], None] = lambda found: None

    def __reduce__(self) -> tuple[type[Redactor], tuple[Rules, str]]:
        """A copy for another process; its counts start at zero."""
        return Redactor, (self.rules, self._secret)

    @property
    def digest(self) -> str:
        """Equal for two redactors that redact every text alike; it tells nothing about the secret."""
        rules = [list(getattr(self.rules, name)) for name in ("kinds", "patterns", "allow", "deny")]
        key = hmac.new(self._key, b"redaction/digest", hashlib.sha256).hexdigest()
        return hashlib.sha256(json.dumps([VERSION, rules, key]).encode()).hexdigest()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many findings of each kind were replaced so far."""
        with self._lock:
            return dict(self._counts)

    def watch(self, watch: Callable[[Mapping[str, int]], None]) -> None:
        """Call `watch` with the findings of each message from now on, by kind; for the collector's metrics."""
        self._watch = watch

    def count(self, found: Mapping[str, int]) -> None:
        """Add findings to `counts`."""
        if found:
            with self._lock:
                self._counts.update(found)
            self._watch(found)

    # --- texts and JSON -----------------------------------------------------------------------------------------------
    def text(self, text: str, found: Found) -> str:
        """`text` with the findings replaced; a text that is JSON is read as JSON. `found` counts them by kind."""
        if not self.rules.may_be_in(text.encode("utf-8", "surrogatepass")) or _BINARY.match(text):
            return text
        if text.lstrip()[:1] in ("{", "["):
            try:
                return self._json(text, found)
            except ValueError:
                pass
            except RecursionError:
                found["unreadable"] += 1
                return UNREADABLE
        return self._plain(text, found)

    def value(self, value: Any, found: Found) -> Any:
        """Plain data with every text in it redacted; the same object when nothing was found."""
        if isinstance(value, str):
            return self.text(value, found)
        if isinstance(value, int) and not isinstance(value, bool):
            return self._number(value, found)
        if isinstance(value, Mapping):
            return self._mapping(value, found)
        if isinstance(value, (list, tuple)):
            items = [self.value(item, found) for item in value]
            return value if all(new is old for new, old in zip(items, value, strict=True)) else items
        return value

    def _json(self, text: str, found: Found) -> str:
        data = json.loads(text, object_pairs_hook=_without_twins)
        changed = self.value(data, found)
        return text if changed is data else to_json(changed)

    def _mapping(self, value: Mapping[Any, Any], found: Found) -> Mapping[Any, Any]:
        changed = {}
        is_blob = value.get("type") == "blob"
        is_same = True
        for key, item in value.items():
            new_key = self.text(key, found) if isinstance(key, str) else key
            new_item = item if is_blob and key == "content" else self.value(item, found)
            is_same = is_same and new_key is key and new_item is item
            changed[new_key] = new_item
        return value if is_same else changed

    def _number(self, value: int, found: Found) -> int | str:
        """A card number may also be a number."""
        if "card" in self.rules.kinds and 10**12 <= value < 10**19 and any(find_cards(str(value))):
            return self._pseudonym("card", str(value), found)
        return value

    def _plain(self, text: str, found: Found) -> str:
        taken: list[tuple[int, int, str]] = []
        for kind, (start, end, normal) in self.rules.find(text):
            if all(end <= other[0] or start >= other[1] for other in taken):
                taken.append((start, end, self._pseudonym(kind, normal, found)))
        pieces, at = [], 0
        for start, end, pseudonym in sorted(taken):
            pieces += [text[at:start], pseudonym]
            at = end
        return "".join([*pieces, text[at:]]) if taken else text

    def _pseudonym(self, kind: str, normal: str, found: Found) -> str:
        found[kind] += 1
        message = f"redaction/{kind}/{normal}".encode("utf-8", "surrogatepass")
        digest = hmac.new(self._key, message, hashlib.sha256).hexdigest()
        return f"<{kind.upper().replace('-', '_')}_{digest[:_DIGITS]}>"

    # --- identifiers --------------------------------------------------------------------------------------------------
    def subject(self, user: str) -> str:
        """The pseudonym of a raw user id; what is a pseudonym already stays as it is."""
        return user if not user or _PSEUDONYM.fullmatch(user) else subject_of(self._secret, user)

    def identifier(self, value: str, found: Found) -> str:
        """An id that other records name too (a conversation, a ticket): one pseudonym if it holds a finding."""
        here: Found = Counter()
        if self.text(value, here) is value:
            return value
        found.update(here)
        return subject_of(self._secret, value)

    # --- outcomes -----------------------------------------------------------------------------------------------------
    def outcome_json(self, raw: bytes) -> bytes:
        """The JSON of one outcome, as the SDK sends it, with its texts redacted."""
        if not self.rules.may_be_in(raw):
            return raw
        return canonical(self.outcome(parse_outcome(json.loads(raw))).to_json()).encode()

    def outcome(self, outcome: Outcome) -> Outcome:
        """The outcome with its texts redacted, with the same pseudonyms as in the trace that it is about."""
        found: Found = Counter()
        target = dict(outcome.target)
        final = [self.value(text, found) for text in (outcome.final_text, outcome.final_messages)]
        # The same words were probably redacted in the trace too, and then no answer there has this hash.
        original_sha256 = None if found else outcome.original_sha256
        if "conversation_id" in target:
            target["conversation_id"] = self.identifier(target["conversation_id"], found)
        if "join_key" in target:
            target["join_key"] = {**target["join_key"], "id": self.identifier(target["join_key"]["id"], found)}
        changed = replace(
            outcome,
            target=target,
            value=self.value(outcome.value, found) if isinstance(outcome.value, str) else outcome.value,
            final_text=final[0],
            final_messages=final[1],
            original_sha256=original_sha256,
            comment=self.value(outcome.comment, found),
            metadata=self.value(outcome.metadata, found),
            source_id=self.subject(outcome.source_id) if outcome.source_kind == "human" else outcome.source_id,
        )
        self.count(found)
        return outcome if changed == outcome else _within_limits(changed)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; `ValueError` when two keys are equal.

    A parser keeps the last of equal keys, and the others would go unchecked. Such a text is redacted as plain text.
    """
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def to_json(data: Any) -> str:
    """Readable JSON, or with a lone surrogate in it, which could not be encoded, JSON in ASCII."""
    text = json.dumps(data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(data)
    return text


def _within_limits(outcome: Outcome) -> Outcome:
    """`outcome` within the limits of its fields, as a pseudonym can be longer than the text that it replaces.

    A comment is cut and metadata are left out; for a final answer that is too long, `RecordError`.
    """
    if outcome.comment is not None and len(outcome.comment.encode()) > MAX_METADATA_BYTES:
        outcome = replace(outcome, comment=outcome.comment.encode()[:MAX_METADATA_BYTES].decode(errors="ignore"))
    if len(canonical(outcome.metadata).encode()) > MAX_METADATA_BYTES:
        outcome = replace(outcome, metadata={})
    texts = {"value": outcome.value, "final_text": outcome.final_text}
    if outcome.final_messages is not None:
        texts["final_messages"] = canonical(outcome.final_messages)
    for name, text in texts.items():
        if isinstance(text, str) and len(text.encode()) > MAX_TEXT_BYTES:
            raise RecordError(f"{name} has more than {MAX_TEXT_BYTES} bytes once personal data in it is replaced; shorten it")
    return outcome
