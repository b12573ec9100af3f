"""Goes through the hops in order. Every hop ends: one that takes longer than it may is broken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

from nightschool.errors import NightschoolError
from nightschool_nightly.doctor.findings import BrokenHopError, Finding, Hop, Passed, Report, Status
from nightschool_nightly.doctor.hops.steps import STEPS, Step
from nightschool_nightly.doctor.visit import ANSWER_TIMEOUT_S, Options, Visit

HOP_TIMEOUT_S = ANSWER_TIMEOUT_S + 30.0
"""Longer than every timeout inside a hop: it ends only an answer that comes byte by byte, or a library that hangs."""


def examine(options: Options, *, tell: Callable[[Finding], None] = lambda _: None) -> Report:
    """Send the marked request and look at every hop; `tell` is called with each finding as soon as it is known."""
    findings: dict[Hop, Finding] = {}
    with ExitStack() as closing:
        visit = Visit(options, closing)
        for step in STEPS:
            finding = _look_at(step, visit, findings)
            findings[step.hop] = finding
            tell(finding)
    return Report(tuple(findings.values()))


def _look_at(step: Step, visit: Visit, findings: dict[Hop, Finding]) -> Finding:
    waiting_for = next((need for need in step.needs if findings[need].status is not Status.OK), None)
    if waiting_for is not None:
        return Finding(step.hop, Status.NOT_CHECKED, f"needs {waiting_for}")
    try:
        passed = _within(HOP_TIMEOUT_S, lambda: step.check(visit))
    except BrokenHopError as broken:
        return Finding(step.hop, Status.BROKEN, broken.text, broken.fix, broken.arrived)
    except (NightschoolError, OSError, ImportError) as error:
        return Finding(
            step.hop,
            Status.BROKEN,
            f"{type(error).__name__}: {error}",
            "the message says what is missing; look at the log of the part that the hop is about",
        )
    return Finding(step.hop, Status.OK, passed.text, arrived=passed.arrived)


def _within(seconds: float, work: Callable[[], Passed]) -> Passed:
    """What `work` returns or raises, or `BrokenHopError` after so long; the thread is then left behind."""
    ended: list[Passed | BaseException] = []

    def run() -> None:
        try:
            ended.append(work())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, name="nightschool-doctor", daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise BrokenHopError(f"no end within {seconds:.0f} s", "something answers but never finishes: look at proxies in between")
    result = ended[0]
    if isinstance(result, BaseException):
        raise result
    return result
