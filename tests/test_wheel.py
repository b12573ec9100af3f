"""What is shipped: the wheel is built as a release builds it, and opened."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "nightschool": ROOT / "nightschool",
    "nightschool_collector": ROOT / "collector" / "nightschool_collector",
    "nightschool_nightly": ROOT / "nightly" / "nightschool_nightly",
    "nightschool_serving": ROOT / "serving" / "nightschool_serving",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    out = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    built = subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", out, ROOT], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        yield archive


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    folder = next(path.split("/")[0] for path in wheel.namelist() if path.split("/")[0].endswith(".dist-info"))
    return wheel.read(f"{folder}/{name}").decode()


def test_the_wheel_holds_exactly_the_four_packages(wheel: zipfile.ZipFile) -> None:
    """Nothing but our four names, and the metadata, lands in a user's site-packages."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == len(PACKAGES) + 1


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_typed_and_complete(wheel: zipfile.ZipFile, package: str) -> None:
    """Each package carries py.typed and every Python file, template and script of the checkout."""
    held = set(wheel.namelist())
    assert f"{package}/py.typed" in held
    source = PACKAGES[package]
    shipped = [path for path in source.rglob("*") if path.suffix in (".py", ".j2", ".js")]
    missing = {f"{package}/{path.relative_to(source).as_posix()}" for path in shipped} - held
    assert not missing


def test_the_help_desk_travels_inside_nightschool(wheel: zipfile.ZipFile) -> None:
    """`nightschool demo` works from an installed wheel: the example's files are at nightschool/helpdesk."""
    example = ROOT / "examples" / "helpdesk"
    files = {f"nightschool/helpdesk/{path.name}" for path in example.iterdir() if path.suffix in (".py", ".jsonl", ".toml")}
    assert {"nightschool/helpdesk/bank.jsonl", "nightschool/helpdesk/telecom.jsonl"} <= files
    assert files <= set(wheel.namelist())


def test_the_entry_points_are_the_command_and_the_two_vllm_plugins(wheel: zipfile.ZipFile) -> None:
    """The command, the endpoint plugin and the CPU LoRA plugin, under the names that VLLM_PLUGINS lists."""
    entry_points = ConfigParser()
    entry_points.read_string(dist_info(wheel, "entry_points.txt"))
    assert {section: dict(entry_points[section]) for section in entry_points.sections()} == {
        "console_scripts": {"nightschool": "nightschool.cli:main"},
        "vllm.endpoint_plugins": {"nightschool": "nightschool_serving.endpoint:create_endpoint"},
        "vllm.general_plugins": {"nightschool_cpu_lora": "nightschool_serving.cpu_lora:install"},
    }


def test_without_an_extra_only_opentelemetry_is_required(wheel: zipfile.ZipFile) -> None:
    """pip install nightschool brings OpenTelemetry and nothing heavy."""
    required = email.message_from_string(dist_info(wheel, "METADATA")).get_all("Requires-Dist") or []
    plain = [line for line in required if "extra ==" not in line]
    assert plain
    assert all(line.startswith("opentelemetry-") for line in plain)
