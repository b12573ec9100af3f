"""The vLLM options that an operator may give after "--", and why all others are refused.

vLLM has over 300 options, and every version adds some. Many undo what keeps tenants apart, what is recorded, or what
nights and serving must have in common. So a new one is refused until somebody has looked at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto

from nightschool.errors import ConfigError


class Takes(Enum):
    """What follows an option."""

    NOTHING = auto()
    ONE = auto()
    MANY = auto()


ALLOWED: dict[str, dict[str, Takes]] = {
    "memory": {
        "gpu-memory-utilization": Takes.ONE,
        "kv-cache-memory-bytes": Takes.ONE,
        "num-gpu-blocks-override": Takes.ONE,
        "block-size": Takes.ONE,
        "cpu-offload-gb": Takes.ONE,
        "enable-prefix-caching": Takes.NOTHING,  # its entries are salted for each tenant
    },
    "several GPUs": {
        "tensor-parallel-size": Takes.ONE,
        "tp": Takes.ONE,
        "pipeline-parallel-size": Takes.ONE,
        "pp": Takes.ONE,
        "distributed-executor-backend": Takes.ONE,
        "max-parallel-loading-workers": Takes.ONE,
        "disable-custom-all-reduce": Takes.NOTHING,
        "enable-expert-parallel": Takes.NOTHING,
        "fully-sharded-loras": Takes.NOTHING,
    },
    "batching": {
        "max-num-seqs": Takes.ONE,
        "max-num-batched-tokens": Takes.ONE,
        "max-num-queued-reqs": Takes.ONE,
        "max-num-queued-tokens": Takes.ONE,
        "long-prefill-token-threshold": Takes.ONE,
        "enable-chunked-prefill": Takes.NOTHING,
        "async-scheduling": Takes.NOTHING,
        "stream-interval": Takes.ONE,
        "max-logprobs": Takes.ONE,
    },
    "kernels": {
        "enforce-eager": Takes.NOTHING,
        "attention-backend": Takes.ONE,
        "moe-backend": Takes.ONE,
        "optimization-level": Takes.ONE,
        "cudagraph-capture-sizes": Takes.MANY,
        "max-cudagraph-capture-size": Takes.ONE,
        "disable-cascade-attn": Takes.NOTHING,
    },
    "loading": {
        "load-format": Takes.ONE,
        "safetensors-load-strategy": Takes.ONE,
        "use-tqdm-on-load": Takes.NOTHING,
        "seed": Takes.ONE,
    },
    "tools and reasoning": {
        "enable-auto-tool-choice": Takes.NOTHING,
        "exclude-tools-when-tool-choice-none": Takes.NOTHING,
        "tool-call-parser": Takes.ONE,
        "reasoning-parser": Takes.ONE,
    },
    "TLS": {
        "ssl-keyfile": Takes.ONE,
        "ssl-certfile": Takes.ONE,
        "ssl-ca-certs": Takes.ONE,
        "ssl-cert-reqs": Takes.ONE,
        "ssl-ciphers": Takes.ONE,
        "enable-ssl-refresh": Takes.NOTHING,
    },
    "answers and logs": {
        "sse-keep-alive-interval": Takes.ONE,
        "enable-force-include-usage": Takes.NOTHING,
        "enable-prompt-tokens-details": Takes.NOTHING,
        "disable-log-stats": Takes.NOTHING,
        "uvicorn-log-level": Takes.ONE,
    },
}
"""By what they are about. `--no-NAME` is allowed for those that take nothing."""


def allowed_options() -> dict[str, Takes]:
    """Every allowed option."""
    return {name: takes for group in ALLOWED.values() for name, takes in group.items()}


def check_extra(extra: Sequence[str]) -> None:
    """Refuse every vLLM option that is not on the list, and values that belong to no option."""
    allowed, values = allowed_options(), 0
    for argument in extra:
        if not _is_option(argument):
            if values == 0:
                raise ConfigError(f"{argument!r} belongs to no vLLM option; give options as --name value or --name=value")
            values -= 1
            continue
        written, equals, _ = argument.partition("=")
        # vLLM's parser takes "_" for "-". It also takes the beginning of a name, which is refused here.
        name = written.lstrip("-").replace("_", "-")
        takes = allowed.get(name)
        if takes is None and allowed.get(name.removeprefix("no-")) is Takes.NOTHING:
            takes = Takes.NOTHING
        if takes is None:
            raise ConfigError(
                f"vLLM option {written!r} cannot be given here: it is set from nightschool.toml, or it could undo what"
                f" keeps tenants apart, or nobody has looked at it; allowed are {', '.join(_shown())}"
            )
        values = 0 if equals or takes is Takes.NOTHING else 1 if takes is Takes.ONE else len(extra)


def _is_option(argument: str) -> bool:
    """Whether it is a name and not a value such as -1."""
    return argument.startswith("-") and not argument[1:].replace(".", "", 1).isdecimal()


def _shown() -> Iterator[str]:
    for name in sorted(allowed_options()):
        yield f"-{name}" if len(name) == 2 else f"--{name}"
