"""The fenced blocks of the pages a reader follows: README, CONTRIBUTING and docs/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    """Empty where the fence names none."""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> str:
        """What a reader types: of a session with prompts the lines after `$ `, continued lines included; else everything."""
        lines = self.text.splitlines()
        if not any(line.startswith("$ ") for line in lines):
            return self.text
        typed: list[str] = []
        goes_on = False
        for line in lines:
            if line.startswith("$ ") or goes_on:
                typed.append(line.removeprefix("$ ") if not goes_on else line)
                # A quote that is still open goes on over the next lines, as does a backslash.
                goes_on = line.endswith("\\") or "\n".join(typed).count("'") % 2 == 1
        return "\n".join(typed) + "\n"


def blocks(*languages: str) -> list[Block]:
    """Every block in one of `languages`; all of them without any."""
    found = [
        Block(str(page.relative_to(ROOT)), text[: match.start()].count("\n") + 1, match[1], match[2])
        for page in PAGES
        if (text := page.read_text(encoding="utf-8"))
        for match in _FENCE.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]
