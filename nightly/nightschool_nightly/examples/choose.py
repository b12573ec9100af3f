"""From the frozen ranges to the examples of a night: episodes are built, and examples are selected out of them.

A night, a dry run and `nightschool episodes` all use this one function, so that none of them can show anything but what
a night does. It needs no torch, and writes nothing but dead letters, and these only when it is told to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nightschool.config.settings import Config
from nightschool.episode import Episode
from nightschool.registry.folder import Registry
from nightschool.stream import Stream
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.episodes.redacted_stream import redacted_for
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.examples.learned import Learned
from nightschool_nightly.examples.select import Watch, select_examples
from nightschool_nightly.examples.split import NoPlace
from nightschool_nightly.examples.unread_outcomes import UnreadOutcomes
from nightschool_nightly.freeze.freeze import check_unchanged
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.serving_defaults import ServingDefaults
from nightschool_nightly.freeze.settling import settling_rules
from nightschool_nightly.rewards.rubric import Rubric


def choose_examples(
    config: Config,
    stream: Stream,
    manifest: NightManifest,
    *,
    model: Path,
    rubrics: Mapping[str, Rubric],
    watch: Watch | None = None,
    left_out: NoPlace | None = None,
    bury: bool = False,
) -> Selection:
    """What a night learns from and tests with, out of the episodes of its frozen ranges.

    `watch` and `left_out` see the fate of each new one (`select_examples`). With `bury`, records that cannot be read are
    copied to the dead-letter topic: a night does so, a look at it does not. The counts of the selection are of tonight's
    records and episodes: everything that was left out, under its reason.
    """
    unread = UnreadOutcomes(rubrics)

    def see(episode: Episode, result: Any) -> None:
        if result is not DropReason.DOCTOR:
            unread.see(episode)
        if watch is not None:
            watch(episode, result)

    from transformers import AutoTokenizer  # takes seconds, and only this needs it

    nights = Registry(config.registry.path).ledger(manifest.tenant).up_to(manifest.ledger)
    with tempfile.TemporaryDirectory(prefix="nightschool-") as work, EpisodeStore(Path(work)) as store:
        check_unchanged(stream, manifest.ranges)
        store.build(redacted_for(manifest.tenant, stream, config), manifest)
        if bury:
            store.dead.bury(stream)
        selection = select_examples(
            store.episodes(manifest.tenant),
            tenant=manifest.tenant,
            settings=config.night,
            rubrics=rubrics,
            tokenizer=AutoTokenizer.from_pretrained(model),
            serving=ServingDefaults(**manifest.serving),
            tokenizer_digest=manifest.base_model.tokenizer,
            settling=settling_rules(manifest),
            learned=Learned.by(nights, manifest.parent),
            night=manifest.digest,
            watch=see,
            left_out=left_out,
        )
    dropped = {**store.counts.dropped, **selection.dropped, **unread.counts}
    return replace(selection, dropped=dict(sorted(dropped.items())))
