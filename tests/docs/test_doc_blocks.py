"""Every code block of README, CONTRIBUTING and docs/ does what it says: read, parsed, or run against real servers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.otelcol import BUILDER_YAML
from nightschool.config.reader import parse_config
from nightschool.keys import hash_key, new_key
from nightschool.registry.folder import Pointer
from nightschool_nightly.rewards.rubric import parse_rubric
from tests.docs.doc_pages import PAGES, ROOT, Block, blocks

RUN = ("python", "console")
PARSED = ("toml", "yaml", "json", "html")
NO_CODE = ("text",)
# What a reader has at hand when they come to a block of Python, because the page or the README said so before.
GIVEN = """
import os, openai, nightschool
KEY, client = os.environ["NIGHTSCHOOL_API_KEY"], openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="ns-bank-...")
messages = [{"role": "user", "content": "my card is gone"}]
"""
# What a block must leave behind: everything it recorded reached the collector.
AFTERWARDS = """
import nightschool
if "nightschool.configure" in BLOCK:
    assert nightschool.flush(30)
    stats = nightschool.stats()
    assert not stats.spans.dropped and not stats.spans.rejected and not stats.outcomes.rejected and not stats.outcomes.invalid, stats
"""
# Commands a test cannot run as they stand, checked as far as they can be.
STAND_INS = """
make() { command make -n -C "$ROOT" "$@" > /dev/null; }
pip() { "$PYTHON" - "$@" <<'END'
import re, sys
from importlib.metadata import metadata
known = set(metadata("nightschool").get_all("Provides-Extra"))
asked = {name for word in sys.argv[2:] for name in re.findall(r"nightschool\\[(.+)\\]", word)[0].split(",")}
assert sys.argv[1] == "install" and asked and asked <= known, (asked - known, known)
END
}
nightschool() {
  case "$1" in
    init) command nightschool "$@" | tee init.txt; grep -o 'ns-bank-[^ ]*' init.txt > key; cat ports >> nightschool.toml ;;
    collect | serve) echo $BASHPID >> servers; exec nightschool "$@" > "$1.log" 2>&1 ;;
    doctor) await_servers; command nightschool "$@" ;;
    *) command nightschool "$@" ;;
  esac
}
await_servers() {
  for url in "http://127.0.0.1:$COLLECTOR_PORT/readyz" "http://127.0.0.1:$SERVING_PORT/health"; do
    curl -sSf --retry 300 --retry-delay 1 --retry-all-errors -o /dev/null "$url" 2> /dev/null
  done
}
"""


class Reader:
    """A reader in a folder of their own, with the servers that the README's first steps start."""

    def __init__(self, folder: Path, collector_port: int, serving_port: int) -> None:
        self.folder = folder
        self._addresses = {"127.0.0.1:4318": f"127.0.0.1:{collector_port}", "127.0.0.1:8000": f"127.0.0.1:{serving_port}"}
        # The pages' requests set no limit; a short context bounds what a CPU writes for them.
        (folder / "ports").write_text(
            f'[collector]\nport = {collector_port}\n[serving]\nport = {serving_port}\nmax_model_len = 256\ncollector = "http://127.0.0.1:{collector_port}"\n'
        )
        tools = Path(sys.executable).parent
        self._environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "ROOT": str(ROOT),
            "COLLECTOR_PORT": str(collector_port),
            "SERVING_PORT": str(serving_port),
            "OUTCOME_KEY": "an outcome key of thirty-two bytes or more",
            "NIGHTSCHOOL_STRICT": "1",
        }

    @property
    def key(self) -> str:
        return (self.folder / "key").read_text().split()[0]

    def type(self, block: Block, *, first: str = "") -> str:
        """Run a block of commands; what it printed."""
        script = f"set -euo pipefail\n{STAND_INS}\n{first}\n{self._theirs(block.commands)}"
        return self._run(["bash", "-c", script.replace("ns-bank-...", "$(cat key)")])

    def execute(self, block: Block) -> str:
        """Run a block of Python as the page's reader would."""
        theirs = self._theirs(GIVEN + block.text).replace("ns-bank-...", self.key)
        return self._run([sys.executable, "-c", f"{theirs}\nBLOCK = {block.text!r}\n{AFTERWARDS}"])

    def _theirs(self, text: str) -> str:
        for named, real in self._addresses.items():
            text = text.replace(named, real)
        return text

    def _run(self, command: list[str]) -> str:
        environment = dict(self._environment)
        if (self.folder / "key").exists():
            environment["NIGHTSCHOOL_API_KEY"] = self.key
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{self._logs()}"
        return done.stdout

    def _logs(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """End the servers that the blocks started."""
        for pid in (self.folder / "servers").read_text().split() if (self.folder / "servers").exists() else ():
            subprocess.run(["kill", pid], check=False, capture_output=True)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody who has typed the README's first steps, from `nightschool init` to `nightschool night`."""
    (steps,) = (block for block in blocks("console") if "nightschool init" in block.text)
    reader = Reader(tmp_path_factory.mktemp("reader"), free_port(), free_port())
    try:
        reader.type(steps)
        yield reader
    finally:
        reader.stop()


# --- all blocks ---------------------------------------------------------------------------------------------------------
def test_every_block_has_a_language_and_a_test() -> None:
    """A fence names its language; one that is no code says `text`. Pages without a look at them would be found here."""
    assert {str(block): block.language for block in blocks() if block.language not in (*RUN, *PARSED, *NO_CODE)} == {}
    assert len(PAGES) > 12
    assert len(blocks(*RUN)) > 15


def test_the_readme_is_short_and_starts_with_the_apps_lines() -> None:
    """At most 800 words, and what an app adds, at most ten statements, is within the first 200."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    app = next(block for block in blocks("python") if block.page == "README.md")
    assert len(text.split()) <= 800
    assert len(text[: text.index(app.text) + len(app.text)].split()) <= 200
    assert len([line for line in app.text.splitlines() if line.strip()]) <= 10


def test_links_lead_somewhere() -> None:
    """Every relative link of a page names a file that is there, and every anchor a heading of it."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith(("http://", "https://")):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            if not path.exists() or (anchor and anchor not in anchors(path)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_prose_is_at_most_120_characters_wide() -> None:
    """Lines of prose fit beside a second window; tables and code may be wider."""
    wide = []
    for page in PAGES:
        in_code = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            in_code ^= line.startswith("```")
            if len(line) > 120 and not in_code and not line.startswith(("|", "![")):
                wide.append(f"{page.name}:{number}")
    assert wide == []


# --- blocks that are read -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_is_a_rubric_or_settings(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of TOML can be pasted: it is a whole rubric, or a part of nightschool.toml."""
    monkeypatch.setenv("OUTCOME_KEY", "an outcome key of thirty-two bytes or more")
    if "items" in tomllib.loads(block.text):
        parse_rubric(block.text)
    else:
        parse_config(block.text, base=tmp_path)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_can_be_read(block: Block) -> None:
    """A block of YAML is a mapping."""
    assert isinstance(yaml.safe_load(block.text), dict)


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_a_pointer(block: Block) -> None:
    """The one block of JSON is a pointer as the registry writes it."""
    assert Pointer(**json.loads(block.text)).stable


@pytest.mark.parametrize("block", blocks("html"), ids=str)
def test_html_uses_what_the_snippet_has(block: Block) -> None:
    """The page's script parses, and calls what /outcome.js defines. A browser runs it in test_collector_outcome_browser."""
    script = re.findall(r"<script>(.*?)</script>", block.text, flags=re.DOTALL)
    assert script
    assert "nightschool.outcome(token" in script[0]
    assert 'src="https://collector.example/outcome.js"' in block.text


# --- blocks that are run ------------------------------------------------------------------------------------------------
@pytest.mark.vllm
@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs_against_real_servers(reader: Reader, block: Block) -> None:
    """With a real collector and a real vLLM behind the addresses, the block runs and nothing it records is lost."""
    reader.execute(block)


@pytest.mark.vllm
@pytest.mark.parametrize(
    "block", [b for b in blocks("console") if b.page not in ("docs/kafka.md",) and "nightschool init" not in b.text], ids=str
)
def test_commands_run(reader: Reader, block: Block) -> None:
    """Typed after the README's first steps, every command ends well. `make` is asked only what it would do."""
    if "nightschool serve" in block.text:
        for command in block.commands.splitlines():
            check_serving_options(command.partition("#")[0].split())
        return
    if "--resume" in block.text:
        block = Block(block.page, block.line, block.language, re.sub(r"^.*--resume.*$", "", block.text, flags=re.MULTILINE))
    printed = reader.type(block)
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in block.text:
        send = f'\n"$PYTHON" {Path(__file__).with_name("send_one_span.py")}\n'
        printed = reader.type(Block(block.page, block.line, block.language, block.text + send))
        assert "SUCCESS" in printed


def check_serving_options(command: list[str]) -> None:
    """`nightschool serve -- OPTIONS`: the options are ones it hands on."""
    from nightschool_serving.options import check_extra

    assert command[:2] == ["nightschool", "serve"]
    check_extra(command[command.index("--") + 1 :] if "--" in command else [])


@pytest.mark.kafka
def test_the_kafka_pages_commands_run(kafka_broker: object, tmp_path: Path) -> None:
    """On a real broker: topics are created and the collector starts. The official collector is built in test_otelcol_dropin."""
    bootstrap = kafka_broker.bootstrap  # type: ignore[attr-defined]
    reader = Reader(tmp_path, free_port(), free_port())
    commands = [block for block in blocks("console") if block.page == "docs/kafka.md"]
    (settings,) = (block for block in blocks("toml") if block.page == "docs/kafka.md")
    config = re.sub(r"kafka://[^\"]*", f"kafka://{bootstrap}", settings.text) + (tmp_path / "ports").read_text()
    (tmp_path / "nightschool.toml").write_text(f'{config}[tenants.bank]\nkey_sha256 = ["{hash_key(new_key("bank"))}"]\n')
    ours, official = commands
    serve = ours.text.replace("nightschool collect", "nightschool collect &\nSERVING_PORT=$COLLECTOR_PORT\n")
    ready = 'curl -sSf --retry 60 --retry-delay 1 --retry-all-errors -o /dev/null "http://127.0.0.1:$COLLECTOR_PORT/readyz"\n'
    try:
        assert "ns.otlp_spans" in reader.type(Block(ours.page, ours.line, "console", serve + ready))
    finally:
        reader.stop()
    assert re.findall(r"builder@v[0-9.]+", official.text) == re.findall(
        r"builder@v[0-9.]+", BUILDER_YAML.read_text(encoding="utf-8")
    )
    assert all((ROOT / path).is_file() for path in re.findall(r"--config (\S+)", official.text))


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
