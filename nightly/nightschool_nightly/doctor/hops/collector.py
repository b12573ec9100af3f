"""Hops of the collector and its stream."""

from __future__ import annotations

from pathlib import Path

from nightschool import semconv as names
from nightschool.config.stream import open_configured
from nightschool.keys import new_key
from nightschool_nightly.doctor.ask import ask
from nightschool_nightly.doctor.findings import BrokenHopError, Passed
from nightschool_nightly.doctor.follow import Follower
from nightschool_nightly.doctor.hops.shared import post_nothing, reply_text
from nightschool_nightly.doctor.visit import CONNECT_TIMEOUT_S, Visit


def check_collector(visit: Visit) -> Passed:
    """The collector answers and is ready."""
    url, start = (
        visit.collector,
        f"start it: nightschool collect --config {visit.options.config}; or say where it is: --collector URL",
    )
    health = ask("GET", url, "/healthz", timeout_s=CONNECT_TIMEOUT_S)
    if health.status == 0:
        raise BrokenHopError(f"nothing answers at {url}: {health.reason}", start)
    if health.status == 404:  # another collector, whose health is at another path
        return Passed(f"{url} answers, but is not our collector: whether it is ready is not known")
    ready = ask("GET", url, "/readyz", timeout_s=CONNECT_TIMEOUT_S)
    if health.status != 200 or ready.status != 200:
        raise BrokenHopError(
            f"{url} is not ready: {(ready if health.status == 200 else health).summary}",
            "look at the collector's log; the usual cause is that it cannot use its stream",
        )
    return Passed(f"{url} answers and is ready")


def check_authentication(visit: Visit) -> Passed:
    """The collector accepts the key and refuses one that was made up."""
    reply = post_nothing(visit, visit.key)
    if reply.status in (401, 403):
        raise BrokenHopError(
            f"the collector does not know the key: {reply_text(reply)}",
            "restart the collector: it runs with another nightschool.toml than this one",
        )
    if reply.status != 200:  # this says nothing about the key; the hop that sends spans shows what is wrong
        return Passed(f"it does not refuse the key, but whether it knows it cannot be told: it answers {reply_text(reply)}")
    stranger = post_nothing(visit, new_key(visit.tenant))
    if stranger.status not in (401, 403):
        raise BrokenHopError(
            f"a key that belongs to no tenant is not refused: {reply_text(stranger)}",
            "put the collector behind authentication: anybody can write to it now",
        )
    return Passed("the key is accepted, an unknown one is refused")


def check_stream(visit: Visit) -> Passed:
    """The configured stream can be read; from here on it is followed."""
    url = visit.config.stream.url
    if url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:")).is_file():
        raise BrokenHopError(
            f"{url} does not exist",
            "the collector runs with another nightschool.toml, or in another place; start it with this one",
        )
    stream = visit.closing.enter_context(open_configured(visit.config.stream))
    visit.follower = Follower(stream, (names.TOPIC_SPANS, names.TOPIC_OUTCOMES))
    return Passed(f"{url} can be read")
