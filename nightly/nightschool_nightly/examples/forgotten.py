"""A night that chose a user who has since asked to be forgotten publishes nothing.

Apart from `episodes.erasures`, which knows records and no examples; and from the selection, which is read back long
after.
"""

from __future__ import annotations

from nightschool.erasure import hash_subject, stored_erasures
from nightschool.errors import NightError
from nightschool.stream import Stream
from nightschool_nightly.episodes.erasures import forgotten_hashes, frozen_erasures
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.freeze.manifest import NightManifest


def refuse_forgotten(stream: Stream, manifest: NightManifest, selection: Selection) -> None:
    """`NightError` when a user that the night learns from, or tests with, asked to be forgotten after it was frozen."""
    late = forgotten_hashes(stored_erasures(stream, manifest.tenant).values()) - frozen_erasures(stream, manifest)
    subjects = {example.cluster for example in (*selection.train, *selection.holdout)}
    if late and (num_users := sum(hash_subject(manifest.tenant, subject) in late for subject in subjects)):
        raise NightError(
            f"{num_users} of the night's users asked to be forgotten after it was frozen; nothing was published:"
            " start a new night without --resume, and 'nightschool forget' again to clear this one's files"
        )
