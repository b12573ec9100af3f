"""The morning report: what a person reads in a minute beside the release. One HTML file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.evaluate import Answers
from nightschool_nightly.gate.gate import Decision
from nightschool_nightly.training.trainer import StepFigures

_MAX_CHANGED = 10
_WIDTH, _HEIGHT = 640, 180


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A held-out prompt that the candidate answers otherwise than what served before."""

    message: str
    before: str
    after: str
    human: str
    reward_before: float | None
    reward_after: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart, as an SVG path."""

    name: str
    path: str
    last: float


def render_report(
    manifest: NightManifest,
    selection: Selection,
    figures: Sequence[StepFigures],
    answers: Sequence[Answers],
    decision: Decision,
    *,
    kl: float,
    num_records: int,
) -> str:
    """The report of one night as HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        manifest=manifest,
        selection=selection,
        users=len({example.cluster for example in (*selection.train, *selection.holdout)}),
        figures=figures,
        decision=decision,
        kl=kl,
        num_records=num_records,
        changed=changed_answers(selection.holdout, answers),
        reward=draw_curve("mean reward", [(f.step, f.reward_mean) for f in figures if f.reward_mean is not None], top=1.0),
        success=draw_curve("answers with full reward", [(f.step, f.success) for f in figures if f.success is not None], top=1.0),
        tree_tokens=sum(f.tree_tokens for f in figures),
        padded_tokens=sum(f.padded_tokens for f in figures),
        width=_WIDTH,
        height=_HEIGHT,
    )


def changed_answers(examples: Sequence[Example], answers: Sequence[Answers]) -> list[ChangedAnswer]:
    """Up to ten held-out prompts answered differently, regressions first: they are what a reader must see."""
    before, after = answers[-2], answers[-1]
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
    """An SVG path of (step, value) in a box of 640 x 180; None without points."""
    if not points:
        return None
    last_step = max(step for step, _ in points) or 1
    places = [(step / last_step * _WIDTH, _HEIGHT - value / top * _HEIGHT) for step, value in points]
    return Curve(name, "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places), points[-1][1])
