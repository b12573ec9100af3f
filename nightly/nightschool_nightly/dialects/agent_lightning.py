"""Agent Lightning: spans that carry rewards and nothing else; the rewards become outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.feedback import Feedback
from nightschool_nightly.dialects.span import RawSpan, unflatten
from nightschool_nightly.dialects.values import first_text, is_number

_SPANS = {"agentlightning.annotation", "agentlightning.reward"}
_UNNAMED = "primary"  # its own name for a reward that the app gave no name
_NAME = "reward"


def _feedback(span: RawSpan) -> Iterator[Feedback]:
    """The rewards of a reward span, one for each dimension, about the answer that it links to, or else its trace."""
    if span.name not in _SPANS:
        return
    about = _about(unflatten(span.attributes, "agentlightning.link"))
    for name, value in _rewards(span.attributes):
        yield Feedback(name=name, value=value, about=about, source_kind="code", source_id="agentlightning")


def _rewards(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    rewards = unflatten(attributes, "agentlightning.reward")
    for reward in rewards if isinstance(rewards, list) else ():
        if isinstance(reward, dict) and is_number(reward.get("value")):
            name = first_text(reward.get("name"))
            yield (_NAME if name in (None, _UNNAMED) else str(name)), reward["value"]
    if not rewards and is_number(attributes.get("reward")):  # as versions before 0.3 write it
        yield _NAME, attributes["reward"]


def _about(links: Any) -> str:
    """The answer that a reward is linked to; the trace, when it is linked by anything else than the response id."""
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and link.get("key_match") == names.GEN_AI_RESPONSE_ID and first_text(link.get("value_match")):
            return f"response:{link['value_match']}"
    return "trace"


AGENT_LIGHTNING = Dialect(feedback=_feedback)
