"""The report beside a release: what a person reads in a minute. One HTML file, no scripts, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.evaluation import Answers, Evaluation
from nightschool_nightly.gate.gate import Decision

_MAX_CHANGED = 10  # what a person really reads
_WIDTH, _HEIGHT = 640, 180  # of the chart, in units of its own; the page scales it


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A held-out prompt that the candidate answers differently than what served before it."""

    message: str
    """The last user message."""
    before: str
    after: str
    human: str
    """The human's own final answer; empty when there is none."""
    reward_before: float | None
    reward_after: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart, as an SVG path."""

    name: str
    path: str
    """The `d` attribute of an SVG path."""
    last: float
    """Value of the last point."""


def render_report(
    manifest: NightManifest,
    selection: Selection,
    evaluation: Evaluation,
    decision: Decision,
    *,
    num_records: int,
) -> str:
    """The report of one night as HTML; `num_records` is how many records it read."""
    metrics = evaluation.metrics
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        manifest=manifest,
        selection=selection,
        users=len({example.cluster for example in (*selection.train, *selection.holdout)}),
        metrics=metrics,
        decision=decision,
        num_records=num_records,
        answers=[answers for answers in (evaluation.base, evaluation.release, evaluation.candidate) if answers],
        changed=changed_answers(selection.holdout, evaluation.before, evaluation.candidate),
        alternatives=evaluation.alternatives,
        reward=draw_curve("mean reward", [(m.step, m.reward_mean) for m in metrics if m.reward_mean is not None], top=1.0),
        success=draw_curve("answers with full reward", [(m.step, m.success) for m in metrics if m.success is not None], top=1.0),
        tree_tokens=sum(m.tree_tokens for m in metrics),
        padded_tokens=sum(m.padded_tokens for m in metrics),
        width=_WIDTH,
        height=_HEIGHT,
    )


def changed_answers(examples: Sequence[Example], before: Answers, after: Answers) -> list[ChangedAnswer]:
    """Up to ten held-out prompts answered differently, regressions first: they are what a reader must see.

    At least half of the places are for other changes, as far as there are some. An unscored answer counts as 0 here,
    for the order only.
    """
    changed = [
        ChangedAnswer(e.message, before.texts[i], after.texts[i], e.demonstration or "", before.rewards[i], after.rewards[i])
        for i, e in enumerate(examples)
        if before.texts[i].strip() != after.texts[i].strip()
    ]
    worse = [item for item in changed if (item.reward_after or 0) < (item.reward_before or 0)]
    others = [item for item in changed if item not in worse]
    num_worse = max(_MAX_CHANGED // 2, _MAX_CHANGED - len(others))
    return (worse[:num_worse] + others)[:_MAX_CHANGED]


def draw_curve(name: str, points: Sequence[tuple[int, float]], *, top: float) -> Curve | None:
    """An SVG path of (step, value) in a box of 640 x 180, with `top` as the highest value; None without points."""
    if not points:
        return None
    last_step = max(step for step, _ in points) or 1  # a single step 0 must not divide by 0
    places = [(step / last_step * _WIDTH, _HEIGHT - value / top * _HEIGHT) for step, value in points]
    return Curve(name, "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places), points[-1][1])
