"""Outcomes by browser token: scope, refusals, limits, CORS, and links that write only when a person clicks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from starlette.testclient import TestClient

from nightschool.config.reader import parse_config
from nightschool.config.settings import DEFAULT_OUTCOMES, OutcomeConfig
from nightschool.errors import ConfigError, StreamUnavailable
from nightschool.keys import KeyRing, hash_key
from nightschool.outcomes.record import Outcome, from_log_record
from nightschool.outcomes.tokens import OutcomeKey, TokenClaims, mint_token
from nightschool.stream import Stream
from nightschool_collector.app import create_app
from nightschool_collector.outcomes.browser_settings import BrowserSettings
from nightschool_collector.outcomes.write_limits import WriteLimits

NOW_S = 1_790_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
ACME, GLOBEX = OutcomeKey("k1", b"a" * 32), OutcomeKey("k1", b"g" * 32)
CLAIMS = TokenClaims(
    "acme", TRACE, ("thumb", "csat", "note", "edit"), NOW_S, NOW_S + 3600, "t-1", conversation_id="c-17", rater="mia"
)
PATH, CONFIRM = "/v1/outcomes/browser", "/v1/outcomes/confirm"
PAGE, OTHER_PAGE = "https://app.acme.example", "https://evil.example"


class Browser:
    """The collector as a page sees it, with a clock that tests move."""

    def __init__(self, stream: Stream, **changes: Any) -> None:
        self.stream, self.now_s = stream, NOW_S
        said = BrowserSettings(
            keys={"acme": [ACME], "globex": [GLOBEX]},
            origins={"acme": [PAGE], "globex": ["https://globex.example"]},
            rules={**DEFAULT_OUTCOMES, "csat": OutcomeConfig(kind="number", lowest=1, highest=5)},
            **changes,
        )
        ring = KeyRing({"acme": [hash_key("key")], "globex": [hash_key("other")]})
        app = create_app(stream, ring, 1 << 20, clock_ns=lambda: self.now_s * 10**9, browser=said)
        self.client = TestClient(app, base_url="https://collector.example")

    def post(
        self, token: str | None = None, *, origin: str | None = PAGE, form: str = "text/plain", **body: Any
    ) -> httpx.Response:
        sent = {"token": token or mint_token(ACME, CLAIMS), "name": "thumb", **body}
        headers = {"content-type": form, **({"origin": origin} if origin else {})}
        return self.client.post(PATH, json=sent, headers=headers)

    def stored(self) -> list[Outcome]:
        found = []
        for number, end in self.stream.end_offsets("ns.outcomes").items():
            for record in self.stream.read("ns.outcomes", number, 0, end):
                assert record.headers["ns-tenant"] == b"acme"
                (group,) = ExportLogsServiceRequest.FromString(record.value).resource_logs
                found.append(from_log_record(group.scope_logs[0].log_records[0]))
        return found


@pytest.fixture
def browser(stream: Stream) -> Browser:
    return Browser(stream)


def test_a_token_writes_its_own_slot(browser: Browser) -> None:
    """Target and rater come from the token, value and time from the page; corrections stay with the same rater."""
    first = browser.post(value=True, event_id="e-1", occurred_at=NOW_S * 1000)
    assert (first.status_code, first.json()) == (202, {"event_id": "t-1:e-1", "status": "accepted"})
    assert browser.post(value=False, event_id="e-2", comment="no").status_code == 202
    assert browser.post(op="retract", event_id="e-3").status_code == 202
    stored = browser.stored()
    assert [(item.value, item.op) for item in stored] == [(True, "set"), (False, "set"), (None, "retract")]
    assert {(item.target["trace_id"], item.source_kind, item.source_id) for item in stored} == {(TRACE, "human", "mia")}
    assert stored[0].occurred_at_ns == NOW_S * 10**9


def test_a_replay_is_one_outcome(browser: Browser) -> None:
    """A beacon after the fetch is a duplicate by its id; the same id with another token is another outcome."""
    assert [browser.post(value=True, event_id="e-1").json()["status"] for _ in range(2)] == ["accepted", "duplicate"]
    assert browser.post(value=False, event_id="e-1").status_code == 409
    other = mint_token(ACME, replace(CLAIMS, token_id="t-2", rater="tom"))
    assert browser.post(other, value=False, event_id="e-1").json() == {"event_id": "t-2:e-1", "status": "accepted"}
    assert len(browser.stored()) == 2


def test_a_token_without_a_rater_is_one(browser: Browser) -> None:
    """Two anonymous tokens are two votes."""
    for token_id in ("a", "b"):
        browser.post(mint_token(ACME, replace(CLAIMS, rater=None, token_id=token_id)), value=True)
    assert {item.source_id for item in browser.stored()} == {"token:a", "token:b"}


def test_the_conversation_can_be_meant(browser: Browser) -> None:
    """Only the token's own, and only if it names one."""
    assert browser.post(name="note", value="fine", about="conversation").status_code == 202
    assert browser.stored()[0].target == {"conversation_id": "c-17"}
    answer = browser.post(mint_token(ACME, replace(CLAIMS, conversation_id=None)), value=True, about="conversation")
    assert answer.status_code == 403
    assert answer.json()["error"] == "about is 'conversation'; allowed is 'answer'; this token names no conversation"


@pytest.mark.parametrize(
    ("token", "status", "said"),
    [
        (
            mint_token(ACME, replace(CLAIMS, issued_at=NOW_S - 9, expires_at=NOW_S - 1)),
            401,
            "the token has expired; ask for a new one",
        ),
        (mint_token(OutcomeKey("k1", b"x" * 32), CLAIMS), 401, "the token's signature is not valid"),
        (mint_token(GLOBEX, CLAIMS), 401, "the token's signature is not valid"),
        (mint_token(ACME, CLAIMS)[:-2], 401, "the token is malformed"),
        (
            mint_token(ACME, replace(CLAIMS, names=("resolved",))),
            403,
            "the token does not allow the outcome 'thumb'; it allows resolved",
        ),
        (mint_token(GLOBEX, replace(CLAIMS, tenant="globex")), 403, f"pages of {PAGE} may not send outcomes of this tenant"),
    ],
)
def test_a_token_that_does_not_allow_it_is_refused(browser: Browser, token: str, status: int, said: str) -> None:
    """Expired, forged, another tenant's, cut, out of scope: a 4xx that the page may read, nothing is stored."""
    answer = browser.post(token, value=True)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
    assert answer.json()["error"].startswith(said)
    assert browser.stored() == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"value": 1}, "the value of 'thumb' is 1; it must be a bool"),
        ({"value": None}, "the value of 'thumb' is None; it must be a bool"),
        ({"name": "csat", "value": 6}, "the value of 'csat' is 6; allowed is 1 to 5"),
        ({"name": "csat", "value": True}, "the value of 'csat' is True; it must be a number"),
        ({"name": "csat", "value": "5"}, "the value of 'csat' is '5'; it must be a number"),
        ({"name": "note", "value": 1e10}, "the value of 'note' is 10000000000.0; allowed is -1e+09 to 1e+09"),
        ({"name": "edit", "value": 3}, "the value of 'edit' is 3; it must be a text"),
        (
            {"name": "edit", "edit": {"final_text": "x" * 65_537}},
            "the text has 65537 bytes; at most 65536 may come from a browser",
        ),
        ({}, "an outcome needs a 'value'"),
        ({"value": True, "target": {"trace_id": TRACE}}, "unknown field 'target'"),
        ({"value": True, "source": {"kind": "human", "id": "tom"}}, "unknown field 'source'"),
        ({"value": True, "event_id": "e" * 129}, "event_id has 129 characters"),
        ({"value": True, "occurred_at": 5}, "occurred_at is 5; it must be"),
    ],
)
def test_a_value_out_of_range_is_refused(browser: Browser, body: dict[str, Any], said: str) -> None:
    """What the name allows is checked, and no field of a page can widen the token's scope."""
    answer = browser.post(**body)
    assert (answer.status_code, answer.json()["error"].startswith(said)) == (400, True), answer.text
    assert browser.stored() == []


def test_an_edit_may_come_from_a_page(browser: Browser) -> None:
    """The user's own text, within the token's names."""
    assert browser.post(name="edit", edit={"final_text": "their words"}).status_code == 202
    assert browser.stored()[0].final_answer == "their words"


def test_only_pages_of_the_tenant_may_write(browser: Browser) -> None:
    """A page of another origin gets 403 and cannot read why; what is not a page sends no origin and may write."""
    for origin in (OTHER_PAGE, "null", "https://globex.example", "https://collector.example"):
        answer = browser.post(value=True, origin=origin)
        assert answer.status_code == 403
        assert ("access-control-allow-origin" in answer.headers) == (origin == "https://globex.example")
    assert browser.post(value=True, origin=None).status_code == 202


def test_a_preflight_is_answered_for_known_pages(browser: Browser) -> None:
    """A browser asks before application/json, and not before text/plain, which beacons send."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answer = browser.client.options(PATH, headers={"origin": PAGE, **asked})
    assert (answer.status_code, answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (204, PAGE, "origin")
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert answer.headers["access-control-allow-headers"] == "content-type"
    assert browser.client.options(PATH, headers={"origin": OTHER_PAGE, **asked}).status_code == 403
    assert browser.post(value=True, form="application/json").status_code == 202
    assert browser.post(value=True, form="application/xml").status_code == 415


@pytest.mark.parametrize(
    ("raw", "said"), [(b"{", "not valid JSON"), (b"[]", "the body is list"), (b"{}", "the token is malformed")]
)
def test_what_is_no_write_is_refused(browser: Browser, raw: bytes, said: str) -> None:
    """Whatever is posted is a 4xx with the reason."""
    answer = browser.client.post(PATH, content=raw)
    assert answer.status_code in (400, 401)
    assert said in answer.json()["error"]
    assert browser.client.post(PATH, content=b" " * (256 << 10 | 1)).status_code == 413


def test_a_token_writes_twenty_times(browser: Browser) -> None:
    """Then it is used up; copies do not count, and neither does what could not be stored."""
    for number in range(20):
        assert browser.post(value=True, event_id=f"e-{number}").status_code == 202
        if number < 19:
            assert browser.post(value=True, event_id=f"e-{number}").json()["status"] == "duplicate"
    answer = browser.post(value=True, event_id="e-20")
    assert (answer.status_code, "used 20 times" in answer.json()["error"]) == (429, True)
    assert browser.post(mint_token(ACME, replace(CLAIMS, token_id="t-2")), value=True).status_code == 202
    assert len(browser.stored()) == 21


class Flaky:
    """A stream that is down while `is_down`."""

    append_bytes = 1 << 20

    def __init__(self, stream: Stream) -> None:
        self._stream, self.is_down = stream, True

    def append(self, *args: Any) -> Any:
        if self.is_down:
            raise StreamUnavailable("down")
        return self._stream.append(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_write_that_failed_does_not_use_the_token_up(stream: Stream) -> None:
    """While the stream is down every write is 503 with a short wait."""
    flaky: Any = Flaky(stream)
    browser = Browser(flaky)
    answers = [browser.post(value=True, event_id="e-1") for _ in range(25)]
    assert {(answer.status_code, answer.headers["retry-after"] in "123") for answer in answers} == {(503, True)}
    flaky.is_down = False
    assert browser.post(value=True, event_id="e-1").json()["status"] == "accepted"


def test_an_address_writes_so_often_a_minute(stream: Stream) -> None:
    """Over the rate: 429 and how long to wait; a minute later writes are accepted again."""
    browser = Browser(stream, writes_per_minute=3)
    assert [browser.post("no token").status_code for _ in range(3)] == [401, 401, 401]
    answer = browser.post(value=True)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "21")
    browser.now_s += 21
    assert browser.post(value=True).status_code == 202
    assert browser.post(value=True).status_code == 429


def test_limits_forget_the_oldest_and_count_networks() -> None:
    """The memory is bounded, and all addresses of an IPv6 subscriber count as one."""
    limits = WriteLimits(per_minute=1, per_token=1, num_remembered=2)
    assert limits.wait_s("2001:db8::1", now_s=0) == 0
    assert limits.wait_s("2001:db8::2", now_s=0) == 60
    assert limits.wait_s("2001:db8:0:1::2", now_s=0) == 0
    assert limits.wait_s("10.0.0.1", now_s=0) == limits.wait_s("10.0.0.2", now_s=0) == 0
    assert limits.wait_s("2001:db8::1", now_s=0) == 0  # forgotten
    assert [limits.reserve("acme", name) for name in ("a", "a", "b", "c", "a")] == [True, False, True, True, True]


def test_a_link_writes_only_when_clicked(browser: Browser) -> None:
    """Opening it shows what would be sent, so scanners and previews write nothing; the page's button writes once."""
    link = {"token": mint_token(ACME, CLAIMS), "name": "csat", "value": "4"}
    opened = browser.client.get(CONFIRM, params=link)
    assert (opened.status_code, browser.stored()) == (200, [])
    assert browser.client.head(CONFIRM, params=link).status_code in (200, 405)
    assert opened.headers["cache-control"] == "no-store"
    assert opened.headers["referrer-policy"] == "same-origin"
    assert "form-action 'self'" in opened.headers["content-security-policy"]
    fields = {name: unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', opened.text)}
    for _ in range(2):
        clicked = browser.client.post(CONFIRM, data=fields, headers={"origin": "https://collector.example"})
        assert (clicked.status_code, "Thank you" in clicked.text) == (202, True)
    (stored,) = browser.stored()
    assert (stored.name, stored.value, type(stored.value)) == ("csat", 4, int)
    foreign = browser.client.post(CONFIRM, data=fields, headers={"origin": OTHER_PAGE})
    assert foreign.status_code == 403


def test_a_link_says_when_it_is_of_no_use(browser: Browser) -> None:
    """A link that is expired or out of range says so when opened; its fields are shown as text, never as markup."""
    expired = mint_token(ACME, replace(CLAIMS, issued_at=NOW_S - 9, expires_at=NOW_S))
    assert browser.client.get(CONFIRM, params={"token": expired, "name": "thumb", "value": "true"}).status_code == 401
    assert browser.client.get(CONFIRM, params={"name": "thumb"}).status_code == 401
    assert (
        browser.client.get(CONFIRM, params={"token": mint_token(ACME, CLAIMS), "name": "csat", "value": "9"}).status_code == 400
    )
    shown = browser.client.get(CONFIRM, params={"token": mint_token(ACME, CLAIMS), "name": "note", "value": "<script>\"'"})
    assert (shown.status_code, "<script>" in shown.text) == (200, False)
    assert browser.client.post(CONFIRM, content=b"%ff=1").status_code in (400, 401)
    assert browser.stored() == []


def test_the_snippet_is_small_and_public(browser: Browser) -> None:
    """Any page may load it; it has 3 KB at most, as it is, with its comments."""
    answer = browser.client.get("/outcome.js")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert len(answer.content) <= 3 << 10


def test_without_keys_every_token_is_refused(stream: Stream) -> None:
    """A collector without a secret cannot check any token, so it refuses all."""
    app = create_app(stream, KeyRing({"acme": [hash_key("key")]}), 1 << 20, clock_ns=lambda: NOW_S * 10**9)
    answer = TestClient(app).post(PATH, json={"token": mint_token(ACME, CLAIMS), "name": "thumb", "value": True})
    assert answer.status_code == 401


def test_the_settings_come_from_the_configuration(tmp_path: Path) -> None:
    """Keys are read from their files when the collector starts; two of one id, or a missing one, stop it."""
    (tmp_path / "k1").write_text("a" * 32)
    text = """
        [collector]
        browser_writes_per_minute = 7
        [outcomes.csat]
        kind = "number"
        [tenants.acme]
        outcome_keys = ["k1=file:k1"{more}]
        outcome_origins = ["https://app.acme.example"]
        revoked_tokens = ["jti:t-9"]
        """

    def configured(more: str = "") -> BrowserSettings:
        return BrowserSettings.of(parse_config(text.replace("{more}", more), base=tmp_path))

    found = configured()
    assert found.keys == {"acme": [ACME]}
    assert (found.origins, found.revoked) == ({"acme": (PAGE,)}, {"acme": ("jti:t-9",)})
    assert (found.writes_per_minute, found.rules["csat"].kind, found.rules["thumb"].kind) == (7, "number", "bool")
    with pytest.raises(ConfigError, match=r"\[tenants\.acme\] outcome_keys has two keys 'k1'"):
        configured(', "k1=file:k1"')
    with pytest.raises(ConfigError, match=r"outcome key 'k2' should be in the file .*, which cannot be read: No such file"):
        configured(', "k2=file:none"')


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["name", "value", "edit", "op", "event_id", "occurred_at", "comment", "about", "target", "source"]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(st.sampled_from(FIELDS), ANY_JSON | st.sampled_from(["thumb", "set", "answer"]), max_size=5),
    link=st.booleans(),
)
def test_whatever_a_page_sends_is_answered(stream: Stream, body: dict[str, Any], link: bool) -> None:
    """With a good token in it, any JSON and any form is a 2xx or a 4xx."""
    browser = Browser(stream, writes_per_minute=1_000_000)
    body = {"token": mint_token(ACME, CLAIMS), "name": "thumb", **body}
    if link:
        fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
        encoded = urlencode(fields, errors="surrogatepass")
        answers = [browser.client.post(CONFIRM, content=encoded), browser.client.get(f"{CONFIRM}?{encoded}")]
    else:
        answers = [browser.client.post(PATH, content=json.dumps(body))]
    assert all(answer.status_code in (200, 202, 400, 403, 409, 429) for answer in answers), answers
