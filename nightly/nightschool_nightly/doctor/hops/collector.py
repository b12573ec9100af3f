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
    url, start = (
        visit.collector,
        f"start it: nightschool collect --config {visit.options.config}; or say where it is: --collector URL",
    )
    health = ask("GET", url, "/healthz", timeout_s=CONNECT_TIMEOUT_S)
    if health.status == 0:
        raise BrokenHopError(f"nothing answers at {url}: {health.reason}", start)
    if health.status == 404:  # a foreign collector, which has its health elsewhere
        return Passed(f"{url} answers, but is no collector of ours: whether it is ready is not known")
    ready = ask("GET", url, "/readyz", timeout_s=CONNECT_TIMEOUT_S)
    if health.status != 200 or ready.status != 200:
        raise BrokenHopError(
            f"{url} is not ready: {(ready if health.status == 200 else health).said}",
            "look at the collector's log; mostly its stream cannot be used",
        )
    return Passed(f"{url} answers and is ready")


def check_authentication(visit: Visit) -> Passed:
    reply = post_nothing(visit, visit.key)
    if reply.status in (401, 403):
        raise BrokenHopError(
            f"the collector does not know the key: {reply_text(reply)}",
            "restart the collector: it runs with another nightschool.toml than this one",
        )
    if reply.status != 200:  # no word about the key, and it would say the same of spans: the hop that sends some names it
        return Passed(f"it refuses no key, but whether it knows one is not known: it answers {reply_text(reply)}")
    stranger = post_nothing(visit, new_key(visit.tenant))
    if stranger.status not in (401, 403):
        raise BrokenHopError(
            f"a key that nobody has is not refused: {reply_text(stranger)}",
            "put the collector behind authentication: anybody can write now",
        )
    return Passed("the key is accepted, an unknown one is refused")


def check_stream(visit: Visit) -> Passed:
    url = visit.config.stream.url
    if url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:")).is_file():
        raise BrokenHopError(
            f"{url} does not exist",
            "the collector runs with another nightschool.toml, or in another place; start it with this one",
        )
    stream = visit.closing.enter_context(open_configured(visit.config.stream))
    visit.follower = Follower(stream, (names.TOPIC_SPANS, names.TOPIC_OUTCOMES))
    return Passed(f"{url} can be read")
