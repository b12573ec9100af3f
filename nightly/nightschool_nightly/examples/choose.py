"""Steps 1 and 2 of a night without its folder: what is frozen, and what is chosen of it.

A night, a dry run, `nightschool episodes` and `nightschool doctor` all look through these functions, so that none of them can
show anything but what a night would do. Nothing here writes, but for dead letters when told to, or needs torch itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from nightschool.config.redactors import redactors
from nightschool.config.settings import Config
from nightschool.stream import Stream
from nightschool_nightly.episodes.redacted_stream import RedactedStream
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.examples.select import Watch, select_examples
from nightschool_nightly.freeze.freeze import check_unchanged
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.settling import lateness_of
from nightschool_nightly.rewards.rubric import Rubric


def choose_examples(
    config: Config,
    stream: Stream,
    manifest: NightManifest,
    *,
    model: Path,
    rubrics: Mapping[str, Rubric],
    watch: Watch | None = None,
    bury: bool = False,
) -> Selection:
    """The episodes of the frozen ranges, and what of them a night learns from; `watch` sees the fate of each.

    `bury` copies records that cannot be read to the dead-letter topic: a night does so, a look does not.
    The counts of the selection are of records and episodes alike: everything that was left out, under its reason.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="nightschool-") as work:
        store = EpisodeStore(Path(work))
        try:
            check_unchanged(stream, manifest.ranges)
            redactor = redactors(config).get(manifest.tenant)
            store.build(RedactedStream(stream, redactor) if redactor else stream, manifest)
            if bury:
                store.dead.bury(stream)
            selection = select_examples(
                store.episodes(manifest.tenant),
                tenant=manifest.tenant,
                settings=config.night,
                rubrics=rubrics,
                tokenizer=AutoTokenizer.from_pretrained(model),
                max_model_len=config.serving.max_model_len,
                tokenizer_digest=manifest.base_model.tokenizer,
                lateness=lateness_of(manifest),
                watch=watch,
            )
        finally:
            store.close()
    dropped = {**store.counts.dropped, **selection.dropped}
    return Selection(selection.train, selection.holdout, dict(sorted(dropped.items())), selection.num_new_episodes)
