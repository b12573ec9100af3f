"""`python -m nightschool_nightly.commands.episodes`: what the next night would learn from, and what it would leave out.

It freezes and chooses with the functions of a night, so it shows what a night would do; and it writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nightschool.cli import episodes as command
from nightschool.config.reader import load_config
from nightschool.config.settings import Config
from nightschool.config.stream import open_configured
from nightschool.errors import MissingExtraError, NightschoolError
from nightschool.registry.base_model import base_model_folder
from nightschool.registry.folder import Registry
from nightschool_nightly.episodes.reasons import DropReason, LeftOut, reason_of

if TYPE_CHECKING:
    from nightschool.episode import Episode, OutcomeHistory
    from nightschool_nightly.examples.example import Example

HELD_OUT, TRAINS = "tests only", "learned from"


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One new episode as a person looks at it. The fields are the keys of `--json`."""

    trace_id: str
    task: str
    user: str | None
    """The subject: the user's pseudonym; None when the app named nobody."""
    num_messages: int
    asked: str
    """The last message of the context."""
    answered: str
    outcomes: tuple[str, ...]
    """The values of each slot, oldest first, as `queue: card -> fraud (human 1f2e)`."""
    has_tokens: bool
    """The server recorded what it sampled, token by token."""
    release: str | None
    fate: str
    """"learned from", "tests only", or the reason why it is left out."""


@dataclass(slots=True)
class Preview:
    """What a night that starts now would do with a tenant's episodes. The fields are the keys of `--json`."""

    tenant: str
    night: str
    """Digest of that night."""
    num_new_episodes: int = 0
    num_train: int = 0
    num_holdout: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    episodes: list[EpisodeRow] = field(default_factory=list)
    """The first new episodes, in order of trace id."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: each count of `dropped` with the words for its reason."""
        dropped = [
            {"reason": name, "count": count, "meaning": reason_of(name).meaning, "remedy": reason_of(name).remedy}
            for name, count in sorted(self.dropped.items())
        ]
        return {**asdict(self), "dropped": dropped}


def preview(config: Config, tenant: str, *, limit: int, now_ms: int) -> Preview:
    """The first `limit` new episodes of `tenant` with their fates, and the counts of all."""
    from nightschool_nightly.examples.choose import choose_examples
    from nightschool_nightly.freeze.freeze import freeze_tenant
    from nightschool_nightly.rewards.load import load_rubrics

    rubrics, model, registry = load_rubrics(config, tenant), base_model_folder(config.model.path), Registry(config.registry.path)
    found: list[tuple[Episode, Example | DropReason | LeftOut]] = []
    left_out: dict[str, DropReason] = {}

    def watch(episode: Episode, result: Example | DropReason | LeftOut) -> None:
        if len(found) < limit:
            found.append((episode, result))

    with open_configured(config.stream) as stream:
        manifest = freeze_tenant(config, tenant, stream, registry=registry, model=model, rubrics=rubrics, now_ms=now_ms)
        selection = choose_examples(config, stream, manifest, model=model, rubrics=rubrics, watch=watch, left_out=left_out)
    trained = {example.id for example in selection.train}

    def fate_of(result: Example | DropReason | LeftOut) -> str:
        if isinstance(result, DropReason | LeftOut):
            return str(result)
        return left_out.get(result.id) or (TRAINS if result.id in trained else HELD_OUT)

    return Preview(
        tenant=tenant,
        night=manifest.digest,
        num_new_episodes=selection.num_new_episodes,
        num_train=len(selection.train),
        num_holdout=len(selection.holdout),
        dropped=selection.dropped,
        episodes=[_row(episode, fate_of(result)) for episode, result in found],
    )


def _row(episode: Episode, fate: str) -> EpisodeRow:
    call = episode.calls[-1]
    return EpisodeRow(
        trace_id=episode.trace_id,
        task=episode.task,
        user=episode.subject,
        num_messages=len(call.messages),
        asked=call.messages[-1].text,
        answered=call.answer.text,
        outcomes=tuple(_outcome(history) for history in episode.outcomes),
        has_tokens=call.tokens is not None,
        release=call.release,
        fate=fate,
    )


def _outcome(history: OutcomeHistory) -> str:
    """`queue: card -> fraud (human 1f2e)`."""
    current = history.current
    values = [_value(one.value) if one.final_answer is None else one.final_answer for one in history.revisions if one.op == "set"]
    who = f"{current.source_kind} {current.source_id[:8]}".strip()
    return f"{current.name}: {' -> '.join(values)} ({who})"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- showing --------------------------------------------------------------------------------------------------------------
def show(found: Preview, *, drops_only: bool) -> None:
    """Print tables for a person."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140)
    if not drops_only:
        _show_episodes(console, found)
    _show_drops(console, found)
    console.print(
        f"{found.num_new_episodes} new episodes of {found.tenant}: {found.num_train} to learn from, "
        f"{found.num_holdout} held out by user. Nothing was written.",
        highlight=False,
    )


def _show_episodes(console: Any, found: Preview) -> None:
    from rich.table import Table

    title = f"the first {len(found.episodes)} of {found.num_new_episodes} new episodes"
    table = Table("episode", "task", "user", "asked", "answered", "outcomes", "tokens", "release", "fate", title=title)
    for one in found.episodes:
        asked = f"{_short(one.asked, 60)} [{one.num_messages} messages]"
        outcomes = "\n".join(_short(text, 60) for text in one.outcomes) or "-"
        release, user = (text[:8] if text else "-" for text in (one.release, one.user))
        tokens = "yes" if one.has_tokens else "no"
        cells = (one.trace_id[:8], one.task, user, asked, _short(one.answered, 40), outcomes, tokens, release, one.fate)
        table.add_row(*map(_plain, cells))
    console.print(table)


def _show_drops(console: Any, found: Preview) -> None:
    from rich.table import Table

    if found.dropped:
        table = Table("left out", "count", "what it means", "what to do", title="what is left out, by reason")
        for name, count in sorted(found.dropped.items(), key=lambda item: (-item[1], item[0])):
            reason = reason_of(name)
            table.add_row(*map(_plain, (name, str(count), reason.meaning, reason.remedy)))
        console.print(table)


def _plain(text: str) -> Any:
    """Text that is only text, for every cell: what was recorded may hold markup of `rich`, or codes for the terminal."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text))


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def main(argv: Sequence[str] | None = None) -> int:
    """Show the preview; 0, or 2 with one line on standard error when there is none to show."""
    parser = argparse.ArgumentParser(prog="nightschool episodes", description=command.SUMMARY)
    command.add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        config.tenant(arguments.tenant)
        try:
            limit = 0 if arguments.drops else arguments.limit
            found = preview(config, arguments.tenant, limit=limit, now_ms=time.time_ns() // 1_000_000)
        except ModuleNotFoundError as error:
            raise MissingExtraError("looking at episodes", "nightly", error.name or "?") from error
    except NightschoolError as error:
        print(f"nightschool episodes: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(found.to_json()))
    else:
        show(found, drops_only=arguments.drops)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
