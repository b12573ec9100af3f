"""Whole nights, each a process of its own as cron starts it: the real model, real vLLM, a small day."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from nightschool.registry.release import REPORT, WEIGHTS
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.gate.gate import Comparison, decide
from nightschool_nightly.night import describe_gain
from tests.nightschool_nightly.night_workplace import RIGHT_QUEUE, SETTINGS, TENANT, Workplace, add_traffic, make_workplace
from tests.warm_python import WarmPython

ALWAYS_FINE = 'task = "triage"\n[[items]]\nname = "short"\nkind = "check"\ncheck = "length"\nmax_chars = 10000\n'


def test_an_empty_day_says_so_and_exits_0_without_a_release(tmp_path: Path, warm_python: WarmPython) -> None:
    """No traffic is no error: cron must not page anybody."""
    workplace = make_workplace(tmp_path, messages=0)
    done = workplace.quick_night(warm_python)
    assert done.returncode == 0, done.stderr
    assert "no new evidence" in done.stdout
    assert workplace.registry.releases(TENANT) == []


def test_traffic_without_outcomes_is_not_trained_on(tmp_path: Path, warm_python: WarmPython) -> None:
    """Unknown is not zero: silence is counted as left out, and nothing is published."""
    workplace = make_workplace(tmp_path, outcomes=False)
    done = workplace.quick_night(warm_python)
    assert done.returncode == 0, done.stderr
    assert "left out, no-outcome: 48" in done.stdout
    assert "nothing-to-learn" in done.stdout
    assert workplace.registry.releases(TENANT) == []


def test_nights_that_publish_nothing_may_let_their_records_expire(tmp_path: Path, warm_python: WarmPython) -> None:
    """Each has read what it read: a later one goes on from there, and counts only its own records."""
    workplace = make_workplace(tmp_path, outcomes=False)
    assert workplace.quick_night(warm_python).returncode == 0
    with sqlite3.connect(tmp_path / "stream.db") as connection:
        connection.execute("DELETE FROM log")
    connection.close()
    with SqliteStream(tmp_path / "stream.db", partitions=2) as stream:
        add_traffic(stream, range(100, 107), queue=None)
    done = workplace.quick_night(warm_python)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out, no-outcome: 7" in done.stdout
    assert "no new evidence since the last night" in workplace.quick_night(warm_python).stdout
    assert [night.end for night in workplace.registry.ledger(TENANT).entries()] == ["nothing-to-learn"] * 2


def test_a_dry_run_shows_the_selection_and_leaves_nothing(tmp_path: Path, warm_python: WarmPython) -> None:
    """--dry-run freezes nothing that a real night would then find finished."""
    workplace = make_workplace(tmp_path)
    done = workplace.quick_night(warm_python, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "48 new episodes" in done.stdout
    assert not list(tmp_path.glob("nights/*/*/*"))


@pytest.mark.parametrize(
    ("rubric", "tenant", "says"),
    [
        (
            'task = "triage"\n[[items]]\nname = "x"\nkind = "vibes"\n',
            TENANT,
            "kind is 'vibes'; allowed are check, outcome",
        ),
        (RIGHT_QUEUE, "nobody", "tenant 'nobody' is not in nightschool.toml (known: bank)"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(tmp_path: Path, rubric: str, tenant: str, says: str) -> None:
    """A person who made a mistake reads what to change, not a traceback."""
    workplace = make_workplace(tmp_path, rubric=rubric, messages=1)
    command = [tenant if word == TENANT else word for word in workplace.command()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_headline_is_the_gain_over_what_served() -> None:
    """On the first night that is the base model; afterwards the release, although the base is compared with too."""
    base = Comparison("base", 40, 30, 0, 0.31, 0.82, 0.51, 0.4, (0.38, 0.62))
    release = Comparison("release", 40, 30, 0, 0.75, 0.82, 0.07, 0.01, (0.0, 0.14))
    for comparisons, gain in (
        ([base], "0.31 -> 0.82 (+0.51) against base"),
        ([base, release], "0.75 -> 0.82 (+0.07) against release"),
    ):
        decision = decide(comparisons, min_holdout=20, kl=0.1, kl_budget=0.5)
        assert describe_gain("f" * 64, decision) == f"release {'f' * 12}: held-out reward {gain}"


@pytest.mark.vllm
@pytest.mark.slow
def test_uniform_rewards_teach_nothing_and_publish_nothing(tmp_path: Path) -> None:
    """A rubric that every answer passes has no gradient; the night says so instead of publishing noise."""
    workplace = make_workplace(tmp_path, rubric=ALWAYS_FINE)
    done = workplace.night()
    assert done.returncode == 0, done.stderr
    assert "nothing-to-learn" in done.stdout
    assert workplace.registry.releases(TENANT) == []
    again = workplace.night()
    assert "no new evidence" in again.stdout


@pytest.mark.vllm
@pytest.mark.slow
def test_a_night_killed_in_every_phase_ends_with_the_same_candidate(tmp_path: Path) -> None:
    """kill -9 costs time, never another adapter: every phase resumes from what was frozen; the registry stays whole."""
    calm = make_workplace(tmp_path / "calm")
    killed = Workplace(tmp_path / "killed")
    shutil.copytree(calm.folder, killed.folder)
    done = calm.night()
    assert done.returncode == 0, done.stderr
    assert "published" in done.stdout, done.stdout

    killed.night_killed_at({"phase": "freeze"})
    killed.night_killed_at({"phase": "episodes"}, "--resume")
    killed.night_killed_at({"phase": "step", "step": 1}, "--resume")
    killed.night_killed_at({"phase": "step", "step": 6}, "--resume")
    killed.night_killed_at({"phase": "gate"}, "--resume")
    assert killed.registry.pointer(TENANT).stable is None
    frozen = killed.registry.move_pointer(TENANT, killed.registry.pointer(TENANT), frozen=True)
    stopped = killed.night("--resume")
    assert "frozen: the pointer of 'bank' is frozen" in stopped.stdout, stopped.stderr
    killed.registry.move_pointer(TENANT, frozen, frozen=False)
    killed.night_killed_at({"phase": "publish"}, "--resume")
    done = killed.night("--resume")
    if "no unfinished night" not in done.stderr:  # the kill may come after the last byte was written
        assert done.returncode == 0, done.stderr

    release, same = calm.registry.pointer(TENANT).stable, killed.registry.pointer(TENANT).stable
    assert release is not None
    assert same is not None
    weights = [w.registry.release_folder(TENANT, d) / WEIGHTS for w, d in ((calm, release), (killed, same))]
    assert hashlib.sha256(weights[0].read_bytes()).digest() == hashlib.sha256(weights[1].read_bytes()).digest()
    assert (killed.registry.release_folder(TENANT, same) / REPORT).read_text().startswith("<!doctype html>")

    again = calm.night()
    assert again.returncode == 0, again.stderr
    assert "no new evidence" in again.stdout
    assert calm.registry.releases(TENANT) == [release]


@pytest.mark.vllm
@pytest.mark.slow
def test_a_night_over_its_budget_weighs_smaller_changes(tmp_path: Path) -> None:
    """With a budget that nothing keeps, every share is measured, none goes out, and serving is as it was."""
    workplace = make_workplace(tmp_path)
    config = tmp_path / "nightschool.toml"
    config.write_text(SETTINGS.replace("kl_budget = 0.5", "kl_budget = 0.0"))
    workplace.night_killed_at({"phase": "budget"})
    done = workplace.night("--resume")
    assert done.returncode == 0, done.stderr
    assert "rejected" in done.stdout and "the budget is 0.000" in done.stdout, done.stdout
    (evaluation,) = (json.loads(path.read_text()) for path in tmp_path.glob("nights/*/*/evaluation.json"))
    weighed = evaluation["alternatives"]
    assert {each["share"] for each in weighed} == {1.0, 0.75, 0.5, 0.35, 0.25}
    assert not any(each["chosen"] for each in weighed) and all(each["num_prompts"] > 0 for each in weighed)
    # The KL term is in the loss of every step that changed something; the first one starts from the base model.
    terms = [step["general_kl"] for step in evaluation["metrics"] if step["grad_norm"] is not None]
    assert terms[0] == pytest.approx(0.0, abs=0.01) and all(term is not None for term in terms)
    assert workplace.registry.releases(TENANT) == []
