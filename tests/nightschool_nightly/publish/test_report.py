"""The morning report as a person, and a browser, reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from nightschool.registry.folder import Pointer
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.evaluation import Alternative, Answers, Contender, Evaluation
from nightschool_nightly.gate.gate import Comparison, Decision
from nightschool_nightly.publish.report import changed_answers, draw_curve, render_report
from nightschool_nightly.training.metrics import StepMetrics

EVIL = '<script>alert("1")</script>'
GAIN = Comparison("base", 40, 30, 0, 0.31, 0.82, 0.51, 0.4, (0.38, 0.62))


class Tags(HTMLParser):
    """Collects the tags of a page, and whether each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.links: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "action")]


def metrics(step: int, reward: float | None) -> StepMetrics:
    return StepMetrics(step, reward, reward, 8, 0, 0, {"kept": 1}, 0.1, 0.01, 0, 0, 1000, 9000, 0.5, None)


def answers(policy: str, texts: Sequence[str], rewards: Sequence[float | None]) -> Answers:
    return Answers(Contender(policy), tuple(texts), tuple(rewards), tuple(text.endswith("-") for text in texts))


Render = Callable[..., str]


def test_what_was_left_out_and_cut_is_shown_for_every_policy(render: Render) -> None:
    """A reader sees whether one side owes its mean to answers that nobody could score, or rambled to the limit."""
    html = render(text="card-", release=answers("release", ["loan"], [None]))
    for row in (
        "base</td><td>1</td><td>0</td><td>0",
        "release</td><td>1</td><td>1</td><td>0",
        "candidate</td><td>1</td><td>0</td><td>1",
    ):
        assert f"<tr><td>{row}</td></tr>" in html


@pytest.fixture
def render(make_manifest: Callable[..., NightManifest], make_example: Callable[..., Example]) -> Render:
    """Renders a report of one held-out prompt; keywords replace its parts."""

    def make(
        *,
        accepted: bool = True,
        message: str = "lost my card",
        text: str = "card",
        steps: Sequence[StepMetrics] = (metrics(0, 0.25), metrics(1, 0.75)),
        release: Answers | None = None,
        alternatives: tuple[Alternative, ...] = (),
        **parts: Any,
    ) -> str:
        holdout = (make_example("h1", message=message, demonstration=text),)
        selection = Selection((make_example(),), holdout, {"no-outcome": 1234}, 2)
        decision = Decision(accepted, () if accepted else (f"not better {EVIL}",), (GAIN,), kl=0.07)
        base, candidate = answers("base", ["loan"], [0.0]), answers("candidate", [text], [1.0])
        evaluation = Evaluation(tuple(steps), 0.07, base, release, candidate, alternatives)
        used: dict[str, Any] = {"manifest": make_manifest(), **parts}
        return render_report(selection=selection, evaluation=evaluation, decision=decision, num_records=12345, **used)

    return make


def test_a_report_says_what_a_reader_wants_to_know(render: Render, make_manifest: Callable[..., NightManifest]) -> None:
    """Released or not, on top of what, what the gate found, what was left out, the curve, and the changed answers."""
    html = render()
    for part in (
        "acme",
        "released",
        "the base model",
        "0.31",
        "0.82",
        "0.070",
        "12,345",
        "no-outcome",
        "1234",
        "lost my card",
        "loan",
        "card",
        "<path",
    ):
        assert part in html, part
    later = render(manifest=make_manifest(pointer=Pointer(epoch=1, stable="f" * 64)))
    assert f"release {'f' * 12}" in later


def test_what_users_wrote_is_never_markup(render: Render) -> None:
    """Messages, answers and reasons that hold HTML are shown as text; the page has no script and loads nothing."""
    for html in (render(message=EVIL, text=EVIL), render(accepted=False), render()):
        tags = Tags(html)
        assert "script" not in tags.seen and not [link for link in tags.links if link and not link.startswith("#")]
    assert "&lt;script&gt;" in render(message=EVIL, text=EVIL)
    assert "&lt;script&gt;" in render(accepted=False)


def test_a_rejected_night_says_why(render: Render) -> None:
    """The reasons stand in the report, and it does not say released."""
    html = render(accepted=False)
    assert "not released" in html and "not better" in html


def test_what_was_weighed_is_shown_with_its_figures(render: Render, make_manifest: Callable[..., NightManifest]) -> None:
    """When the last step was over the budget a reader sees what was chosen, and what the larger changes would have given."""
    assert "What was weighed" not in render()
    weighed = (Alternative(40, 0.35, 0.061, 0.64, 55, chosen=True), Alternative(40, 1.0, 0.561, 0.8, 55, chosen=False))
    html = render(manifest=make_manifest(settings={"seed": 0, "kl_budget": 0.1}), alternatives=weighed)
    for part in (
        "What was weighed",
        "budget of 0.1",
        "0.35",
        "0.061",
        "0.64 (55 prompts)",
        "chosen",
        "0.561",
        "0.80 (55 prompts)",
    ):
        assert part in html, part


def test_a_night_without_metrics_still_has_a_report(render: Render) -> None:
    """No steps, or steps that could score nothing, draw no curve."""
    for steps in ([], [metrics(0, None)]):
        assert "<path" not in render(steps=steps)


def test_answers_that_stayed_are_not_shown(make_example: Callable[..., Example]) -> None:
    """White space is no change."""
    examples = [make_example("a"), make_example("b")]
    found = changed_answers(
        examples, answers("base", [" card", "loan"], [1.0, 0.0]), answers("candidate", ["card\n", "fraud"], [1.0, 1.0])
    )
    assert [(item.before, item.after, item.human) for item in found] == [("loan", "fraud", "fraud")]


def test_regressions_come_first(make_example: Callable[..., Example]) -> None:
    """Of many changed answers ten are shown: up to five that got worse, then others; a lost score is worse, too."""
    before = [0.0] * 12 + [1.0] * 7 + [0.5]
    after: list[float | None] = [1.0] * 12 + [0.0] * 7 + [None]
    examples = [make_example(f"e{n}", message=str(n)) for n in range(20)]
    found = changed_answers(
        examples,
        answers("base", [f"b{n}" for n in range(20)], before),
        answers("candidate", [f"a{n}" for n in range(20)], after),
    )
    assert [item.message for item in found] == ["12", "13", "14", "15", "16", "0", "1", "2", "3", "4"]
    only_worse = changed_answers(examples[19:], answers("base", ["b"], [0.5]), answers("candidate", ["a"], [None]))
    assert [item.reward_after for item in only_worse] == [None]


def test_more_regressions_than_anything_fill_the_table(make_example: Callable[..., Example]) -> None:
    """When little got better, regressions take the free places: none is hidden behind an empty row."""
    examples = [make_example(f"e{n}", message=str(n)) for n in range(9)]
    found = changed_answers(examples, answers("base", ["b"] * 9, [1.0] * 9), answers("candidate", ["a"] * 9, [0.0] * 8 + [1.0]))
    assert [item.message for item in found] == [*"01234567", "8"]


def test_the_release_is_what_answers_are_compared_with(render: Render) -> None:
    """With a release before it, the candidate's changes are those against the release, not against the base."""
    assert "loan" in render()
    html = render(release=answers("release", ["transfer"], [0.0]))
    assert "transfer" in html and "loan" not in html


def test_a_curve_is_a_path_from_left_to_right() -> None:
    """Steps go from 0 to 640, values from the bottom at 180 to the top at 0; a single point is a path too."""
    curve = draw_curve("reward", [(0, 0.0), (5, 0.5), (10, 1.0)], top=1.0)
    assert curve is not None and (curve.path, curve.last) == ("M0.0 180.0 L320.0 90.0 L640.0 0.0", 1.0)
    single = draw_curve("reward", [(0, 0.5)], top=1.0)
    assert single is not None and single.path == "M0.0 90.0"
    assert draw_curve("reward", [], top=1.0) is None
