"""A real day, a real night, a better morning: two tenants share one small model, on this machine.

- Day 1: the app of each tenant asks the serving endpoint which queue each customer's message belongs to. The tracer
  records that, and a simulated agent says for most messages which queue was right.
- Night: each tenant's night learns an adapter, and publishes it if it is better.
- Morning: new customers, new messages and the same endpoint, which now serves each tenant's own release. "Before" is
  the base model on the same messages of the morning, so only the weights differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from agent import Agent
from picture import write_picture
from rich.console import Console
from rich.table import Table
from router import Routed, Router, Ticket
from servers import Server, free_ports

import nightschool
from nightschool.keys import hash_key, new_key

HERE = Path(__file__).resolve().parent
TENANTS = {"bank": "bank", "telecom": "telecom"}
CONCURRENCY = 24
console = Console(width=None if sys.stdout.isatty() else 110)


@dataclass
class Tenant:
    """One business of the demo."""

    name: str
    key: str
    tickets: list[Ticket]
    router: Router
    queues: list[str]
    night_s: float = 0.0

    def of_day(self, day: int) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.day == day]


@dataclass(frozen=True)
class Morning:
    """One tenant's morning: the same messages answered by the base model and by its release."""

    before: list[Routed]
    after: list[Routed]

    def interval95(self, seed: int) -> tuple[float, float]:
        """95% bootstrap interval of the gain, resampling users."""
        gains: dict[str, list[int]] = {}
        for old, new in zip(self.before, self.after, strict=True):
            gains.setdefault(old.ticket.user, []).append(int(new.is_right) - int(old.is_right))
        sums, counts = (np.array([f(gains[user]) for user in sorted(gains)]) for f in (sum, len))
        weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=10_000)
        low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
        return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(prog="nightschool demo")
    parser.add_argument("--out", default="var/demo")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # SIGTERM must also stop the servers that are started below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started, out = time.monotonic(), Path(arguments.out).resolve()
    shutil.rmtree(out, ignore_errors=True)
    (out / "logs").mkdir(parents=True)
    collector_port, serving_port = free_ports(2)
    keys = {name: new_key(name) for name in TENANTS}
    config = write_config(out, keys, collector_port, serving_port, arguments.seed)
    collector_url, serving_url = f"http://127.0.0.1:{collector_port}", f"http://127.0.0.1:{serving_port}"
    tenants = [load_tenant(name, key, f"{serving_url}/v1") for name, key in keys.items()]
    console.print("[bold]nightschool demo[/]: a real day, a real night, a better morning. Starting the collector and vLLM ...")
    with (
        Server("collect", config, f"{collector_url}/readyz", out / "logs" / "collector.log") as collector,
        Server("serve", config, f"{serving_url}/health", out / "logs" / "serving.log") as serving,
    ):
        collector.wait_ready(60)
        serving.wait_ready(300)
        nightschool.instrument_openai()
        for tenant in tenants:
            live_day(tenant, collector_url, arguments.seed)
        for tenant in tenants:
            tenant.night_s = run_night(tenant, config)
        mornings = {}
        for tenant in tenants:
            release = wait_for_release(tenant, serving_url)
            mornings[tenant.name] = live_morning(tenant, collector_url, release)
    summary = summarize(tenants, mornings, arguments.seed, time.monotonic() - started)
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    write_picture(summary, out / "morning.svg")
    show(summary, out, config)


# --- setting up ---------------------------------------------------------------------------------------------------------
def write_config(out: Path, keys: dict[str, str], collector_port: int, serving_port: int, seed: int) -> Path:
    """The demo's nightschool.toml; the nights use the default settings, with the seed of the demo."""
    lines = [
        '[stream]\nurl = "sqlite:stream.db"',
        '[registry]\npath = "registry"',
        f"[collector]\nport = {collector_port}",
        f'[serving]\nport = {serving_port}\ncollector = "http://127.0.0.1:{collector_port}"\nmax_model_len = 1024',
        f'[night]\nstate = "nights"\nseed = {seed}',
    ]
    for name, key in keys.items():
        shutil.copy(HERE / f"{name}.toml", out / f"{name}.rubric.toml")
        lines.append(f'[tenants.{name}]\nkey_sha256 = ["{hash_key(key)}"]\nrubrics = ["{name}.rubric.toml"]')
    path = out / "nightschool.toml"
    path.write_text("\n\n".join(lines) + "\n")
    return path


def load_tenant(name: str, key: str, base_url: str) -> Tenant:
    """A tenant with its messages; the three that are examples in its prompt are left out of both days."""
    lines = (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    tickets = [Ticket(**json.loads(line)) for line in lines]
    queues = sorted({ticket.queue for ticket in tickets})
    short = [ticket for ticket in tickets if ticket.day == 1 and 8 <= len(ticket.text.split()) <= 14]
    examples = [next(ticket for ticket in short if ticket.queue == queue) for queue in queues[:3]]
    rest = [ticket for ticket in tickets if ticket not in examples]
    return Tenant(name, key, rest, Router(base_url, key, queues, examples), queues)


# --- day, night, morning ------------------------------------------------------------------------------------------------
def live_day(tenant: Tenant, collector_url: str, seed: int) -> None:
    """The first day: route every message, and let the agent review most of them."""
    begun = time.monotonic()
    nightschool.configure(collector_url, tenant.name, api_key=tenant.key, service_name="helpdesk")
    routed = route_all(tenant, tenant.of_day(1), "nightschool")
    agent = Agent(tenant.queues, f"{seed}/{tenant.name}")
    reviewed = sum(agent.review(each) for each in routed)
    sent_everything()
    right = sum(each.is_right for each in routed)
    console.print(
        f"[bold]day 1[/]    {tenant.name}: {len(routed)} messages, {right / len(routed):.0%} routed right by the base model; "
        f"the agent said where {reviewed} of them went ({time.monotonic() - begun:.0f} s)"
    )


def route_all(tenant: Tenant, tickets: Sequence[Ticket], model: str) -> list[Routed]:
    """Route many tickets at once, as an app under load does."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(lambda ticket: tenant.router.route(ticket, model=model), tickets))


def sent_everything() -> None:
    """Wait until the collector has everything; stop the demo if anything that the app recorded did not arrive."""
    if not nightschool.flush(60) or (stats := nightschool.stats()).spans.dropped or stats.outcomes.dropped:
        raise SystemExit(f"the collector did not get everything: {nightschool.stats()}")


def run_night(tenant: Tenant, config: Path) -> float:
    """Run `nightschool night` as cron would; returns how many seconds it took."""
    console.print(f"[bold]night[/]    {tenant.name}")
    begun = time.monotonic()
    command = [sys.executable, "-m", "nightschool", "night", "--config", str(config), "--tenant", tenant.name]
    log = config.parent / "logs" / f"night-{tenant.name}.log"
    with log.open("w") as errors:
        if (status := subprocess.run(command, stderr=errors, check=False).returncode) != 0:
            raise SystemExit(f"the night of {tenant.name} ended with status {status}; see {log}")
    return time.monotonic() - begun


def wait_for_release(tenant: Tenant, serving_url: str) -> str:
    """The release that answers now, once serving has loaded what the registry points at; "base" when there is none."""
    headers = {"authorization": f"Bearer {tenant.key}"}
    for _ in range(100):
        state = httpx.get(f"{serving_url}/nightschool/v1/releases", headers=headers, timeout=10).json()
        if state["release"] != "base":
            return str(state["release"])
        time.sleep(0.3)
    console.print(f"[yellow]{tenant.name} has no release: its night published none[/]")
    return "base"


def live_morning(tenant: Tenant, collector_url: str, release: str) -> Morning:
    """The next morning: messages of new users, first to the base model for comparison, then as in production."""
    nightschool.configure(collector_url, tenant.name, api_key=tenant.key, service_name="helpdesk")
    tickets = tenant.of_day(2)
    before, after = route_all(tenant, tickets, "base"), route_all(tenant, tickets, "nightschool")
    sent_everything()
    for routed, expected in ((before, "base"), (after, release)):
        if wrong := {each.release for each in routed} - {expected}:
            raise SystemExit(f"{tenant.name} was answered by {wrong}, expected {expected}: this must never happen")
    return Morning(before, after)


# --- showing ------------------------------------------------------------------------------------------------------------
def summarize(tenants: Sequence[Tenant], mornings: dict[str, Morning], seed: int, seconds: float) -> dict[str, object]:
    """var/demo/summary.json: what the served model did."""
    return {
        "seconds": round(seconds, 1),
        "tenants": {
            tenant.name: {
                "before": sum(each.is_right for each in mornings[tenant.name].before) / len(mornings[tenant.name].before),
                "after": sum(each.is_right for each in mornings[tenant.name].after) / len(mornings[tenant.name].after),
                "ci95": mornings[tenant.name].interval95(seed),
                "n": len(mornings[tenant.name].after),
                "release": mornings[tenant.name].after[0].release,
                "night_s": round(tenant.night_s, 1),
            }
            for tenant in tenants
        },
    }


def show(summary: dict[str, object], out: Path, config: Path) -> None:
    """The table, and where to look next."""
    table = Table(title="The next morning: new users, new messages, the same endpoint", title_justify="left")
    for heading in ("tenant", "messages", "before", "after", "gain, 95% interval", "release", "night"):
        table.add_column(heading)
    releases: dict[str, str] = {}
    for name, row in summary["tenants"].items():  # type: ignore[attr-defined]
        low, high = row["ci95"]
        gain = f"{row['after'] - row['before']:+.0%} ({low:+.0%} to {high:+.0%})"
        table.add_row(
            name,
            str(row["n"]),
            f"{row['before']:.0%}",
            f"{row['after']:.0%}",
            gain,
            row["release"][:12],
            f"{row['night_s']:.0f} s",
        )
        releases[name] = row["release"]
    console.print(table)
    console.print(f"done in {summary['seconds']} s. Look at:")
    console.print(f"  {os.path.relpath(out)}/morning.svg", soft_wrap=True, highlight=False)
    for name, release in releases.items():
        if release != "base":
            console.print(
                f"  {os.path.relpath(out)}/registry/{name}/{release[:12]}*/report.html", soft_wrap=True, highlight=False
            )
    console.print("try next:", highlight=False)
    for name in releases:
        console.print(
            f"  nightschool night --config {os.path.relpath(config)} --tenant {name}     (it says that there is no new evidence)",
            soft_wrap=True,
            highlight=False,
        )
    console.print(
        "  change a queue or an agent in examples/helpdesk, or write a rubric of your own, and run it again", soft_wrap=True
    )


if __name__ == "__main__":
    main()
