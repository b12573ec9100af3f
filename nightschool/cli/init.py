"""`nightschool init`: writes a nightschool.toml and a rubric to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from nightschool.errors import ConfigError
from nightschool.keys import hash_key, new_key
from nightschool.registry.folder import Registry

SUMMARY = "write a nightschool.toml and a rubric to start from, with a key for one tenant"

_CONFIG = """\
# Every setting with its default and meaning: nightschool config
[stream]
url = "sqlite:var/stream.db"

[registry]
path = "var/registry"

[model]
path = "smollm2-135m-instruct"

[tenants.{tenant}]
key_sha256 = ["{key_sha256}"]
rubrics = ["rubrics/{tenant}.toml"]
"""

_RUBRIC = """\
# What a good answer is. Items are weighted; an answer that an item cannot score is left out, never taken as 0.
task = "triage"             # the task the app names in nightschool.request(task="triage", ...)

[[items]]
name = "agrees-with-the-human"
kind = "outcome"            # the answer equals what the human finally chose
outcome = "queue"           # the name the app gives in nightschool.outcome("queue", ...)
weight = 1.0

[[items]]
name = "short"
kind = "check"
check = "length"            # all of them: docs/rubrics.md
max_chars = 400
weight = 0.2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="nightschool.toml", metavar="FILE", help="the file to write (default: %(default)s)")
    parser.add_argument("--tenant", default="demo", help="the name of the first tenant (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    path = Path(arguments.config)
    rubric = path.parent / "rubrics" / f"{arguments.tenant}.toml"
    for existing in (path, rubric):
        if existing.exists():
            raise ConfigError(f"{existing} exists already; move it away or name another with --config")
    key = new_key(arguments.tenant)
    rubric.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_CONFIG.format(tenant=arguments.tenant, key_sha256=hash_key(key)), encoding="utf-8")
    rubric.write_text(_RUBRIC, encoding="utf-8")
    Registry(path.parent / "var" / "registry").create()
    print(f"wrote {path} and {rubric}\nkey of tenant {arguments.tenant}, shown once: {key}")
    print("next: nightschool collect, nightschool serve, and nightschool.configure(...) in the app")
    return 0
