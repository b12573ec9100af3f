"""Three tenants unlike the demo's: does a night with default settings give each of them a better release?

    make bench NAME=unlike
    python benchmarks/unlike.py --tenant clinic --out var/unlike

The messages are in benchmarks/unlike/, with a README on how they were made. For each tenant a day is served and
captured for real: collector, vLLM, the official openai client with the tracer, and a simulated person who says for most
messages what the right answer was. The app sends no max_tokens and shows no examples, and the base model is almost
never right. Then comes a night, started as cron starts it, and a morning of new users who are answered by the base
model and by the release. Nothing of [night] is set.

Each tenant's folder holds what is done. So a run that is stopped goes on where it was, tenant by tenant, and the last
line has every tenant that is finished.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "helpdesk"))  # the demo's servers are used here too

from servers import Server, free_ports  # noqa: E402

import nightschool  # noqa: E402
from nightschool.keys import hash_key, new_key  # noqa: E402
from nightschool.machine import read_machine  # noqa: E402
from nightschool.registry.folder import Registry  # noqa: E402

CONCURRENCY = 24
REVIEWED, WRONG = 0.7, 0.03  # shares: of messages that somebody says the answer to, and of those with a wrong one
KINDS = "booking, reschedule, cancel, results, prescription, referral, billing or directions"
PROMPTS = {
    "newsroom": "You sort headlines for a news agency. Reply with the topic only, one of: {answers}.",
    "returns": "You sort a shop's returns. Reply with the reason only, one of: {answers}.",
    "clinic": "You read messages to a clinic. Reply with one line of JSON and nothing else: "
    f'{{{{"kind": KIND, "urgent": true or false}}}}. KIND is {KINDS}.',
}
RUBRIC = 'task = "sort"\n\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "answer"\n'


@dataclass(frozen=True)
class Message:
    """A line of a tenant's file."""

    id: str
    day: int
    user: str
    text: str
    answer: str


@dataclass(frozen=True)
class Answered:
    """What the model said to a message."""

    message: Message
    text: str
    response_id: str
    release: str

    @property
    def is_right(self) -> bool:
        return self.text.strip() == self.message.answer


class Tenant:
    """One tenant, its app and its folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        lines = (ROOT / "benchmarks" / "unlike" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        self.messages = [Message(**json.loads(line)) for line in lines]
        self.answers = sorted({message.answer for message in self.messages})
        self.system = PROMPTS[name].format(answers=", ".join(self.answers))
        folder.mkdir(parents=True, exist_ok=True)
        key = folder / "key"
        if not key.exists():
            key.write_text(new_key(name))
        self.key = key.read_text()

    def configure(self) -> tuple[Path, int, int]:
        """Write nightschool.toml with free ports; its path, the collector's port and serving's."""
        collector, serving = free_ports(2)
        (self.folder / "rubric.toml").write_text(RUBRIC)
        Registry(self.folder / "registry").create()
        config = self.folder / "nightschool.toml"
        config.write_text(
            '[stream]\nurl = "sqlite:stream.db"\n[registry]\npath = "registry"\n[night]\nstate = "nights"\n'
            f'[collector]\nport = {collector}\n[serving]\nport = {serving}\ncollector = "http://127.0.0.1:{collector}"\n'
            # Where nobody limits an answer a small base model may go on to the end of this.
            "max_model_len = 512\n"
            f'[tenants.{self.name}]\nkey_sha256 = ["{hash_key(self.key)}"]\nrubrics = ["rubric.toml"]\n'
        )
        return config, collector, serving

    def of_day(self, number: int) -> list[Message]:
        return [message for message in self.messages if message.day == number]

    def ask(self, messages: Sequence[Message], model: str, serving: int) -> list[Answered]:
        """The app: many messages at once."""
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{serving}/v1", api_key=self.key, max_retries=5, timeout=600)

        def one(message: Message) -> Answered:
            with nightschool.request(task="sort", user=message.user, conversation=message.id):
                raw = client.chat.completions.with_raw_response.create(
                    model=model,
                    messages=[{"role": "system", "content": self.system}, {"role": "user", "content": message.text}],
                    temperature=0,
                )
            completion = raw.parse()
            return Answered(
                message, completion.choices[0].message.content or "", completion.id, raw.headers["x-nightschool-release"]
            )

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return list(pool.map(one, messages))

    def review(self, answered: Sequence[Answered]) -> None:
        """A person says for most messages what the right answer was, now and then a wrong one."""
        for each in answered:
            chance = random.Random(f"{self.name}/{each.message.id}")
            reviewed, errs, other = chance.random() < REVIEWED, chance.random() < WRONG, chance.choice(self.answers)
            if reviewed:
                final = other if errs else each.message.answer
                nightschool.outcome("answer", final_text=final, response_id=each.response_id, rater="office")


# --- day, night, morning ------------------------------------------------------------------------------------------------
@contextmanager
def served(tenant: Tenant) -> Iterator[int]:
    """Inside, the tenant's collector and vLLM run and the tracer is on; the port of vLLM."""
    config, collector_port, serving_port = tenant.configure()
    collector_url, serving_url = f"http://127.0.0.1:{collector_port}", f"http://127.0.0.1:{serving_port}"
    with (
        Server("collect", config, f"{collector_url}/readyz", tenant.folder / "collector.log") as collector,
        Server("serve", config, f"{serving_url}/health", tenant.folder / "serving.log") as serving,
    ):
        collector.wait_ready(120)
        serving.wait_ready(600)
        nightschool.configure(collector_url, tenant.name, api_key=tenant.key, service_name="app")
        yield serving_port
        sent_everything()


def sent_everything() -> None:
    if not nightschool.flush(60) or (stats := nightschool.stats()).spans.dropped or stats.outcomes.dropped:
        raise SystemExit(f"the collector did not get everything: {nightschool.stats()}")


def day(tenant: Tenant) -> dict[str, Any]:
    """The first day, 40 messages after the other: what is in the file of answers is with the collector."""
    path, messages = tenant.folder / "day.jsonl", tenant.of_day(1)
    done = path.read_text().splitlines() if path.exists() else []
    if len(done) < len(messages):
        with served(tenant) as serving, path.open("a") as file:
            for first in range(len(done), len(messages), 40):
                answered = tenant.ask(messages[first : first + 40], "nightschool", serving)
                tenant.review(answered)
                sent_everything()
                file.write("".join(json.dumps([each.message.id, each.text, each.is_right]) + "\n" for each in answered))
                file.flush()
                print(f"{tenant.name}: {first + len(answered)} messages of the day", flush=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lengths = sorted(len(text) for _, text, _ in rows)
    return {
        "messages": len(rows),
        "right": round(sum(right for *_, right in rows) / len(rows), 3),
        "characters_p50": lengths[len(lengths) // 2],
        "characters_max": lengths[-1],
    }


def night(tenant: Tenant) -> dict[str, Any]:
    """How the night ended, and its own numbers; a night that was stopped goes on."""
    if (done := tenant.folder / "night.json").exists():
        return dict(json.loads(done.read_text()))
    config, *_ = tenant.configure()
    state = tenant.folder / "nights" / tenant.name
    resume = ["--resume"] if any(state.glob("*/night.json")) and not any(state.glob("*/finished.json")) else []
    begun = time.monotonic()
    command = [sys.executable, "-m", "nightschool", "night", "--config", str(config), "--tenant", tenant.name, *resume]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - begun
    (finished,) = state.glob("*/finished.json")
    evaluation = json.loads((finished.parent / "evaluation.json").read_text())
    row = {
        **json.loads(finished.read_text()),
        "night_s": None if resume else round(seconds, 1),  # of a night that was stopped nobody knows
        "kl": evaluation["kl"],
        "curve": [
            [step["step"] + 1, step["reward_mean"], step["kl"], step["general_kl"]]
            for step in evaluation["metrics"]
            if step["kl"] is not None
        ],
    }
    done.write_text(json.dumps(row))
    return row


def morning(tenant: Tenant, release: str | None) -> dict[str, Any]:
    """New users, answered by the base model and as in production."""
    if (done := tenant.folder / "morning.json").exists():
        return dict(json.loads(done.read_text()))
    with served(tenant) as serving:
        if release is not None:
            wait_for(release, tenant, serving)
        before, after = (tenant.ask(tenant.of_day(2), model, serving) for model in ("base", "nightschool"))
    if wrong := {each.release for each in after} - {release or "base"}:
        raise SystemExit(f"{tenant.name} was answered by {wrong}, expected {release}: this must never happen")
    row = {"before": share(before), "after": share(after), "ci95": interval95(before, after), "n": len(after)}
    done.write_text(json.dumps(row))
    return row


def wait_for(release: str, tenant: Tenant, serving: int) -> None:
    headers = {"authorization": f"Bearer {tenant.key}"}
    for _ in range(200):
        if httpx.get(f"http://127.0.0.1:{serving}/nightschool/v1/releases", headers=headers).json()["release"] == release:
            return
        time.sleep(0.3)
    raise SystemExit(f"serving did not load release {release[:12]} of {tenant.name}")


# --- numbers ------------------------------------------------------------------------------------------------------------
def share(answered: Sequence[Answered]) -> float:
    return sum(each.is_right for each in answered) / len(answered)


def interval95(before: Sequence[Answered], after: Sequence[Answered]) -> list[float]:
    """95% bootstrap interval of the gain, resampling users."""
    gains: dict[str, list[int]] = {}
    for old, new in zip(before, after, strict=True):
        gains.setdefault(old.message.user, []).append(int(new.is_right) - int(old.is_right))
    sums, counts = (np.array([f(gains[user]) for user in sorted(gains)]) for f in (sum, len))
    weights = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=10_000)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
    return [round(float(low), 3), round(float(high), 3)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenant", choices=sorted(PROMPTS), action="append", help="only this one; may be given again")
    parser.add_argument("--out", default="var/unlike", type=Path, help="the tenants' folders")
    parser.add_argument("--json", type=Path, help="a file for the last line, with the hardware and each night's curve")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SIGTERM must also stop the servers that are started below
    nightschool.instrument_openai()
    rows: dict[str, dict[str, Any]] = {}
    curves: dict[str, Any] = {}  # step, mean reward, KL to the base on the gate's general prompts, on those of the loss
    for name in PROMPTS:
        tenant = Tenant(name, arguments.out.resolve() / name)
        if arguments.tenant is None or name in arguments.tenant:
            print(f"{name}: {day(tenant)}", flush=True)
            morning(tenant, night(tenant)["release"])
        if (tenant.folder / "morning.json").exists():
            ended, measured = night(tenant), morning(tenant, None)
            rows[name] = {
                **{key: round(measured[key], 3) for key in ("before", "after")},
                "ci95": measured["ci95"],
                "kl": round(ended["kl"], 4),
                "night_s": ended["night_s"],
                "released": ended["release"] is not None,
            }
            print(
                json.dumps(
                    {"tenant": name, "n": measured["n"], "day": day(tenant), "curve": ended["curve"], "end": ended["text"]}
                )
            )
            curves[name] = [[number, *(round(value, 4) for value in values)] for number, *values in ended["curve"]]
    if arguments.json:
        machine = read_machine()
        about = {"tenants": rows, "curves": curves, "hardware": f"{machine.name}, {machine.cores} cores"}
        arguments.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
