"""Draws the morning as one SVG file: how many messages each tenant's model got right, before and after its night."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

# It must be readable on a light and on a dark page. A viewer that ignores the media query shows the light colors.
_STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1b1f24; } .soft { fill: #5d6672; font-size: 13px; } .big { font-weight: 600; }
.track { fill: #eef1f4; } .before { fill: #9aa7b5; } .after { fill: #0b7a4b; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8eaed; } .soft { fill: #9aa4b2; } .track { fill: #232a33; } .before { fill: #66717f; } .after { fill: #3ecf8e; }
}
"""
_LEFT, _TRACK, _WIDTH, _ROW, _TOP = 110, 440, 720, 92, 20


def draw_morning(summary: Mapping[str, Any]) -> str:
    """SVG text of the demo's summary (`summary.json`): for each tenant the share answered right before and after."""
    rows = list(summary["tenants"].items())
    height = _TOP + _ROW * len(rows) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">',
        f"<title>Share of messages answered right, before and after one night</title><style>{_STYLE}</style>",
    ]
    for number, (tenant, row) in enumerate(rows):
        parts += _tenant(tenant, row, _TOP + number * _ROW)
    return "\n".join([*parts, "</svg>\n"])


def _tenant(name: str, row: Mapping[str, Any], top: int) -> list[str]:
    low, high = row["ci95"]
    told = f"{row['after'] - row['before']:+.0%} on {row['n']} messages of new users, 95% interval {low:+.0%} to {high:+.0%}"
    return [
        f'<text class="big" x="0" y="{top + 35}">{escape(name)}</text>',
        *_bar("before", row["before"], top),
        *_bar("after", row["after"], top + 28),
        f'<text class="soft" x="{_LEFT}" y="{top + 70}">{told}</text>',
    ]


def _bar(kind: str, share: float, y: int) -> list[str]:
    return [
        f'<rect class="track" x="{_LEFT}" y="{y}" width="{_TRACK}" height="22" rx="4"/>',
        f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{max(2.0, share * _TRACK):.1f}" height="22" rx="4"/>',
        f'<text x="{_LEFT + _TRACK + 12}" y="{y + 16}"><tspan class="big">{share:.0%}</tspan> <tspan class="soft">{kind}</tspan></text>',
    ]


def write_picture(summary: Mapping[str, Any], path: Path) -> None:
    """Draw `summary` into the file `path`."""
    path.write_text(draw_morning(summary), encoding="utf-8")
