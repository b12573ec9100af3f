"""The demo's picture says what its summary says."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PICTURE = Path(__file__).parents[3] / "examples" / "helpdesk" / "picture.py"
SVG = "{http://www.w3.org/2000/svg}"
SUMMARY = {
    "tenants": {
        "bank": {"before": 0.25, "after": 0.75, "n": 150, "ci95": [0.4, 0.6]},
        "a<b & c": {"before": 0.0, "after": 1.0, "n": 7, "ci95": [-0.1, 1.0]},
    }
}


@pytest.fixture(scope="module")
def drawn() -> ET.Element:
    draw: Callable[[dict[str, Any]], str] = runpy.run_path(str(PICTURE))["draw_morning"]
    return ET.fromstring(draw(SUMMARY))


def widths(drawn: ET.Element, kind: str) -> list[float]:
    return [float(bar.attrib["width"]) for bar in drawn.iter(f"{SVG}rect") if bar.attrib["class"] == kind]


def test_a_bar_is_as_long_as_its_share_of_the_track(drawn: ET.Element) -> None:
    """Length stands for the share alone, on one scale for all tenants; a zero is still seen."""
    track = widths(drawn, "track")[0]
    assert widths(drawn, "before") == [0.25 * track, 2.0]
    assert widths(drawn, "after") == [0.75 * track, track]


def test_every_tenant_stands_with_its_gain_and_interval(drawn: ET.Element) -> None:
    """Names are escaped (the file parses), and the words give gain, number of messages and interval."""
    said = ["".join(text.itertext()) for text in drawn.iter(f"{SVG}text")]
    assert {"bank", "a<b & c"} <= set(said)
    assert "+50% on 150 messages of new users, 95% interval +40% to +60%" in said
    assert "+100% on 7 messages of new users, 95% interval -10% to +100%" in said
