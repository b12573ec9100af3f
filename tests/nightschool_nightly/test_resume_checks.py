"""A night that is resumed under another serving is refused: it would test under other conditions than it began with."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from nightschool.config.reader import load_config
from nightschool.config.stream import open_configured
from nightschool.errors import NightError
from nightschool.registry.base_model import base_model_folder
from nightschool.registry.folder import Registry
from nightschool_nightly.folder import MANIFEST, NightFolders
from nightschool_nightly.freeze.freeze import freeze_tenant
from nightschool_nightly.night import run_night
from nightschool_nightly.progress import Progress
from nightschool_nightly.rewards.load import load_rubrics

SETTINGS = '[stream]\nurl = "sqlite:stream.db"\n[night]\nstate = "nights"\n[tenants.bank]\nrubrics = ["r.toml"]\n[serving]\n'
RUBRIC = 'task = "triage"\n[[items]]\nname = "short"\nkind = "check"\ncheck = "length"\nmax_chars = 9\n'


@pytest.mark.parametrize("line", ["max_model_len = 256", "max_model_len = 512\ndefault_max_tokens = 9"])
def test_another_limit_of_serving_is_named(tmp_path: Path, line: str) -> None:
    """[serving] decides where answers are cut, so it may not change between freeze and gate."""
    path = tmp_path / "nightschool.toml"
    path.write_text(SETTINGS + "max_model_len = 512\n")
    (tmp_path / "r.toml").write_text(RUBRIC)
    config = load_config(path)
    with open_configured(config.stream) as stream:
        manifest = freeze_tenant(
            config,
            "bank",
            stream,
            registry=Registry(config.registry.path),
            model=base_model_folder(config.model.path),
            rubrics=load_rubrics(config, "bank"),
            now_ms=1,
        )
    assert manifest.serving["max_model_len"] == 512
    Registry(config.registry.path).create()
    NightFolders(config.night.state, "bank").night(manifest.digest).write(MANIFEST, manifest.to_json())
    path.write_text(SETTINGS + line)
    with pytest.raises(NightError, match=r"^\[serving\] changed since night"):
        run_night(load_config(path), "bank", dry_run=False, resume=True, progress=Progress(Console(quiet=True)), now_ms=lambda: 2)
