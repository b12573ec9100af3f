"""Step 1 of a night: freeze its input. After this no wall clock and no unordered iteration decides anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from nightschool import semconv
from nightschool.config import NightConfig
from nightschool.errors import DataLossError
from nightschool.registry import Pointer
from nightschool.release import BaseModel
from nightschool.stream import Stream
from nightschool_nightly.night_manifest import FrozenRange, NightManifest
from nightschool_nightly.rubric import Rubric

TOPICS = (semconv.TOPIC_SPANS, semconv.TOPIC_OUTCOMES)
_FOLDERS = {"state"}


def freeze_night(
    stream: Stream,
    *,
    tenant: str,
    settings: NightConfig,
    dtype: str,
    base_model: BaseModel,
    rubrics: Mapping[str, Rubric],
    pointer: Pointer,
    last_published: NightManifest | None,
    now_ms: int,
) -> NightManifest:
    """Take the end offsets of every partition once, and everything else that decides, as the night's manifest.

    `DataLossError` when a topic is another one than the last published night read, or when records that night had not yet seen
    have expired.
    """
    seen = {(part.topic, part.partition): part for part in last_published.ranges} if last_published else {}
    ranges = []
    for topic in TOPICS:
        topic_id, starts, ends = stream.topic_id(topic), stream.start_offsets(topic), stream.end_offsets(topic)
        for partition in sorted(ends):
            before = seen.get((topic, partition))
            new_from = before.end if before else starts[partition]
            if before and before.topic_id != topic_id:
                raise DataLossError(
                    f"topic {topic} is not the one the last night read (id {before.topic_id}, now {topic_id}); was it re-created?"
                )
            if new_from > ends[partition]:
                raise DataLossError(
                    f"topic {topic} partition {partition} ends at {ends[partition]}, before offset {new_from} that was already read"
                )
            if before and new_from < starts[partition]:
                lost = f"offsets {new_from} to {starts[partition] - 1}"
                raise DataLossError(
                    f"topic {topic} partition {partition}: {lost} expired before any night read them; raise the retention"
                )
            ranges.append(FrozenRange(topic, topic_id or "", partition, starts[partition], new_from, ends[partition]))
    return NightManifest(
        tenant=tenant,
        ranges=tuple(ranges),
        settings={name: value for name, value in asdict(settings).items() if name not in _FOLDERS},
        dtype=dtype,
        base_model=base_model,
        rubrics={task: rubric.digest for task, rubric in sorted(rubrics.items())},
        pointer=pointer,
        frozen_at_ms=now_ms,
    )
