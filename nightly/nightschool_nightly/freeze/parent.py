"""The release that a night is to learn on top of, checked before anything is computed on it."""

from __future__ import annotations

from nightschool.errors import ReleaseRejected
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.release import BaseModel, verify_release


def verify_parent(registry: Registry, tenant: str, pointer: Pointer, *, base_model: BaseModel, dtype: str, max_rank: int) -> None:
    """`ReleaseRejected` unless the release that `pointer` names passes serving's own checks beside this base model in `dtype`.

    Serving refuses what does not pass, so a night on top of it would be measured against answers that nobody gets.
    """
    if pointer.stable is None:
        return
    folder = registry.release_folder(tenant, pointer.stable)
    try:
        verify_release(folder, tenant=tenant, digest=pointer.stable, base_model=base_model, dtype=dtype, max_rank=max_rank)
    except ReleaseRejected as error:
        raise ReleaseRejected(
            f"release {pointer.stable[:12]} of {tenant!r}, which tonight would learn on top of, cannot be used: {error}; "
            "restore it, or move the pointer to another release or to the base model (docs/registry.md says how)"
        ) from None
