"""A night as its steps see it: what it was started with, what it froze of that, and where it leaves what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nightschool.config.settings import Config
from nightschool.registry.folder import Registry
from nightschool.stream import Stream
from nightschool_nightly.folder import NightFolder
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.progress import Progress
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.sampler import seed_of


@dataclass(frozen=True, slots=True)
class NightInputs:
    """What a night works with before it has frozen anything: all that the configuration names."""

    config: Config
    tenant: str
    model: Path
    """Folder of the base model."""
    rubrics: Mapping[str, Rubric]
    """The tenant's rubrics by task."""
    registry: Registry
    stream: Stream


@dataclass(frozen=True, slots=True)
class FrozenNight:
    """A night from step 2 on: its inputs, what it froze of them, and where it leaves what it makes."""

    inputs: NightInputs
    manifest: NightManifest
    folder: NightFolder
    progress: Progress

    @property
    def num_records(self) -> int:
        """Records in the frozen ranges."""
        return sum(part.end - part.start for part in self.manifest.ranges)

    def seed(self, *names: str) -> int:
        """The seed of one random choice: the same in every run of this night."""
        return seed_of(self.manifest.digest, *names)
