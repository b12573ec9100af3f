"""The script in a real browser: a page of another origin sends an outcome, and corrects it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import pytest
import uvicorn
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from nightschool.keys import KeyRing, hash_key
from nightschool.outcomes.record import Outcome, from_log_record
from nightschool.outcomes.tokens import OutcomeKey
from nightschool.sdk.client import Client
from nightschool.stream import Stream
from nightschool_collector.app import create_app
from nightschool_collector.outcomes.browser_settings import BrowserSettings

playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH; playwright's own download is not used")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SECRET = "s" * 40
TRACE = "0af7651916cd43dd8448eb211c80319c"
PAGE = """<!doctype html><title>an app</title><button id="up">up</button><button id="down">down</button><p id="said"></p>
<script src="{collector}/outcome.js"></script>
<script>
  function say(value) {{
    nightschool.outcome("{token}", "thumb", value).then(
      function (answer) {{ document.title = answer.status; }}, function (error) {{ document.title = error.message; }});
  }}
  up.onclick = function () {{ say(true); }};
  down.onclick = function () {{ say(false); }};
</script>"""


class Site:
    """The collector and an app's pages, each on a port of its own: two origins to a browser."""

    def __init__(self, stream: Stream, folder: Path) -> None:
        self.stream, self.folder = stream, folder
        handler = partial(_Quiet, directory=str(folder))
        self._pages = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.page_origin = f"http://127.0.0.1:{self._pages.server_port}"
        # The same pages, but another site to a browser.
        self.other_origin = f"http://localhost:{self._pages.server_port}"
        settings = BrowserSettings(
            keys={"acme": [OutcomeKey("k1", SECRET.encode())]}, origins={"acme": [self.page_origin]}, writes_per_minute=1000
        )
        app = create_app(stream, KeyRing({"acme": [hash_key("key")]}), 1 << 20, browser=settings)
        config = uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off")
        self._server = uvicorn.Server(config)
        self._threads = [threading.Thread(target=self._server.run), threading.Thread(target=self._pages.serve_forever)]
        self.client = Client(
            "http://127.0.0.1:9", "acme", api_key="key", subject_key="pepper", outcome_key=("k1", SECRET), enabled=True
        )

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self._server.started)
        (listener,) = self._server.servers[0].sockets
        self.collector = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._pages.shutdown()
        self._pages.server_close()
        for thread in self._threads:
            thread.join()
        self.client.shutdown(0)

    def write_page(self, token: str | None) -> None:
        (self.folder / "index.html").write_text(PAGE.format(collector=self.collector, token=token))

    def stored(self) -> list[Outcome]:
        found = []
        for number, end in self.stream.end_offsets("ns.outcomes").items():
            for record in self.stream.read("ns.outcomes", number, 0, end):
                (group,) = ExportLogsServiceRequest.FromString(record.value).resource_logs
                found.append(from_log_record(group.scope_logs[0].log_records[0]))
        return found


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "waited 30 s"
        time.sleep(0.02)


@pytest.fixture
def site(stream: Stream, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "pages"
    folder.mkdir()
    with Site(stream, folder) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context()
    yield context.new_page()
    context.close()


def says(page: Any, title: str) -> None:
    page.wait_for_function("title => document.title.startsWith(title)", arg=title, timeout=30_000)


def test_a_page_posts_a_thumb_and_corrects_it(site: Site, page: Any) -> None:
    """Two clicks are two records of one slot, and the page reads that each was accepted."""
    site.write_page(site.client.outcome_token("thumb", trace_id=TRACE, user="mia"))
    page.goto(f"{site.page_origin}/index.html")
    for button, value in (("#up", True), ("#down", False)):
        page.evaluate("document.title = 'waiting'")
        page.click(button)
        says(page, "accepted")
        assert site.stored()[-1].value is value
    up, down = site.stored()
    assert up.target == down.target == {"trace_id": TRACE}
    assert (up.name, up.source_kind, up.source_id) == (down.name, down.source_kind, down.source_id)
    assert up.source_id
    assert up.id != down.id
    assert up.occurred_at_ns is not None and down.occurred_at_ns is not None
    assert up.occurred_at_ns < down.occurred_at_ns


@pytest.mark.parametrize("fault", ["expired", "forged", "foreign", "other name"])
def test_a_page_reads_why_its_token_was_refused(site: Site, page: Any, fault: str) -> None:
    """The page's script gets a 4xx with the reason at once, and nothing is stored."""
    others = Client("http://127.0.0.1:9", "globex", api_key="k", outcome_key=("k1", "g" * 40))
    token, said = {
        "expired": (expired_token(), "nightschool: 401 the token has expired"),
        "forged": ("nsf1.e30.AAAA", "nightschool: 401 the token's signature is not valid"),
        "foreign": (others.outcome_token("thumb", trace_id=TRACE), "nightschool: 401 the token's signature is not valid"),
        "other name": (site.client.outcome_token("csat", trace_id=TRACE), "nightschool: 403 the token does not allow"),
    }[fault]
    others.shutdown(0)
    site.write_page(token)
    page.goto(f"{site.page_origin}/index.html")
    page.click("#up")
    says(page, said)
    assert site.stored() == []


def expired_token() -> str:
    client = Client(
        "http://127.0.0.1:9", "acme", api_key="key", outcome_key=("k1", SECRET), clock=lambda: time.time_ns() - 3600 * 10**9
    )
    token = client.outcome_token("thumb", trace_id=TRACE, expires_in_s=60)
    client.shutdown(0)
    assert token
    return token


def test_a_page_of_another_site_can_neither_write_nor_read(site: Site, page: Any) -> None:
    """With a valid token, from an origin that is not listed: the page cannot read the answer, nothing is stored."""
    site.write_page(site.client.outcome_token("thumb", trace_id=TRACE))
    page.goto(f"{site.other_origin}/index.html")
    with page.expect_event("requestfailed"):
        page.click("#up")
    assert site.stored() == []


def test_what_was_not_sent_is_sent_when_the_page_goes_away(site: Site, page: Any) -> None:
    """Every attempt failed until the user left the page: then the browser itself delivers it, once."""
    site.write_page(site.client.outcome_token("thumb", trace_id=TRACE))
    # No network for the page's own requests. Intercepting them would hold up the browser's delivery too.
    page.add_init_script("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.goto(f"{site.page_origin}/index.html")
    page.click("#up")
    assert site.stored() == []
    page.goto("about:blank")
    wait_until(lambda: len(site.stored()) == 1)
    assert site.stored()[0].value is True


def test_a_page_may_send_json_after_a_preflight(site: Site, page: Any) -> None:
    """An app's own code without our script: application/json, which a browser asks about first."""
    site.write_page(None)
    page.goto(f"{site.page_origin}/index.html")
    body = {"token": site.client.outcome_token("thumb", trace_id=TRACE), "name": "thumb", "value": True}
    status = page.evaluate(
        """async ([url, body]) => (await fetch(url, {method: "POST", headers: {"Content-Type": "application/json"},
                                                     body: JSON.stringify(body)})).status""",
        [f"{site.collector}/v1/outcomes/browser", body],
    )
    assert (status, len(site.stored())) == (202, 1)


def test_a_link_is_confirmed_by_a_click(site: Site, page: Any) -> None:
    """Opening the link of an e-mail writes nothing; its button, under the page's own content policy, does."""
    token = site.client.outcome_token("csat", trace_id=TRACE)
    page.goto(f"{site.collector}/v1/outcomes/confirm?{urlencode({'token': token, 'name': 'csat', 'value': '4'})}")
    assert "csat" in page.inner_text("body")
    assert site.stored() == []
    page.click("button")
    says(page, "Thank you")
    assert [item.value for item in site.stored()] == [4]


def test_the_page_of_the_examples_works(site: Site, page: Any) -> None:
    """Both buttons, the retraction and the text, as the example writes them."""
    example = (Path(__file__).parents[3] / "examples" / "outcomes" / "page.html").read_text(encoding="utf-8")
    token = site.client.outcome_token("thumb", "edit", trace_id=TRACE)
    (site.folder / "index.html").write_text(example.replace("COLLECTOR", site.collector).replace("TOKEN", token or ""))
    page.goto(f"{site.page_origin}/index.html")
    page.fill("#text", "My own words.")
    for number, button in enumerate(("#up", "#down", "#none", "#form button"), start=1):
        page.click(button)
        wait_until(lambda number=number: len(site.stored()) == number)  # type: ignore[misc]
    assert [
        (item.op, item.value, item.final_answer) for item in sorted(site.stored(), key=lambda item: item.occurred_at_ns or 0)
    ] == [
        ("set", True, None),
        ("set", False, None),
        ("retract", None, None),
        ("set", None, "My own words."),
    ]
    assert page.inner_text("#said") == "accepted"
