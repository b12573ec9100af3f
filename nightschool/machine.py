"""What this process may use of the machine: cores, memory, and whether the processor computes in bf16.

`read_machine` is the only function that looks at the machine; the other functions work on what was read. Sizes that
nightschool.toml leaves at 0 are computed here, the same for every service. On a system without /proc and /sys (macOS),
whatever cannot be read has no limit, and bf16 counts as missing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_MIB = 1 << 20
_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names in /proc/cpuinfo: AVX512-BF16 and AMX on x86, BF16 on Arm (Graviton 3, Apple M2, Neoverse V1 and later)."""
# ONEDNN_MAX_CPU_ISA limits the instructions that PyTorch's products use. Below these names, oneDNN turns bf16 numbers
# into fp32 and back around every product. oneDNN ignores a name that it does not know, and so do we.
_ISA_WITHOUT_BF16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)  # fmt: skip
# A core with less than this share of the fastest one's speed gets no compute thread: the threads wait for each other
# after every product, so on a processor with fast and slow cores (Apple's, many Arm ones) a slow one holds all back.
_FAST = 0.75
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
# KV cache: an eighth of the memory, because serving and a night may run side by side, each with its own, and the
# weights, the trainer and the page cache need the rest.
_KV_SHARE, _KV_SMALLEST = 8, 256 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this process may use."""

    cores: int
    """Cores that work at full speed: those the process may run on, at most the CPU quota of its cgroups; at least 1."""
    memory_bytes: int
    """Memory of the machine, or the limit of the process's cgroups where that is less."""
    available_bytes: int
    """Of it, what can be had now without swapping."""
    has_bf16: bool
    """Whether the processor multiplies bf16 numbers with instructions of its own."""
    name: str
    """The processor, for people."""


def read_machine(
    root: Path = Path("/"), *, environment: Mapping[str, str] | None = None, affinity: Collection[int] | None = None
) -> Machine:
    """Read the machine below `root`; `environment` and `affinity` (core numbers) are this process's own if None."""
    environment = os.environ if environment is None else environment
    affinity = own_affinity() if affinity is None else affinity
    cpuinfo, meminfo = _read(root / "proc/cpuinfo"), _read(root / "proc/meminfo")
    groups = list(_cgroups(root))
    total, available = memory_of(meminfo, _sysconf_bytes())
    limits = [limit for group in groups if (limit := group.memory_limit) is not None]
    room = [limit - group.memory_used for group in groups if (limit := group.memory_limit) is not None]
    quotas = [quota for group in groups if (quota := group.cpu_quota) is not None]
    return Machine(
        cores=usable_cores(affinity, _capacities(root, affinity), min(quotas, default=None)),
        memory_bytes=min([total, *limits]),
        available_bytes=max(0, min([available, *room])),
        has_bf16=has_bf16(cpuinfo, environment),
        name=processor_name(cpuinfo),
    )


# --- what was read, understood ------------------------------------------------------------------------------------------
def usable_cores(affinity: Collection[int], capacities: Mapping[int, int], quota: float | None) -> int:
    """How many compute threads may run at full speed, at least 1.

    `capacities` are the relative speeds of cores, where the kernel knows them; `quota` is the cgroup's limit in cores.
    """
    fastest = max(capacities.values(), default=0)
    fast = sum(capacities.get(core, fastest) >= _FAST * fastest for core in affinity)
    # A quota of 1.5 cores carries one thread: with two, both would be stopped for a part of every period.
    return max(1, fast if quota is None else min(fast, int(quota)))


def memory_of(meminfo: str, installed: int) -> tuple[int, int]:
    """Total and available bytes of /proc/meminfo; `installed` bytes where it says nothing."""
    sizes = {}
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if (number := value.removesuffix("kB").strip()).isdecimal():
            sizes[name] = int(number) * 1024
    total = sizes.get("MemTotal", installed)
    return total, sizes.get("MemAvailable", total)


def has_bf16(cpuinfo: str, environment: Mapping[str, str]) -> bool:
    """Whether bf16 products are native: by the processor's flags, and not switched off for oneDNN."""
    flags: set[str] = set()
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, Arm; the first core speaks for all
            flags = set(value.split())
            break
    limit = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or ""
    return bool(flags & _CPU_FLAGS) and limit.upper() not in _ISA_WITHOUT_BF16


def processor_name(cpuinfo: str) -> str:
    """The model name of /proc/cpuinfo, or the architecture: Arm processors have no name there."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return os.uname().machine


# --- sizes from the machine ---------------------------------------------------------------------------------------------
def compute_threads(machine: Machine, setting: int, environment: Mapping[str, str], *, spare: int = 0) -> int:
    """Threads for products: the setting, else OMP_NUM_THREADS, else every core but `spare`."""
    # OpenMP allows a list, one number for each level of nesting; the first is ours.
    wanted = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if setting:
        return setting
    return int(wanted) if wanted.isdecimal() and int(wanted) else max(1, machine.cores - spare)


def kv_cache_bytes(machine: Machine, setting_gib: int) -> int:
    """Bytes of vLLM's KV cache on a CPU: the setting, else an eighth of the memory, at most half of what is free."""
    if setting_gib:
        return setting_gib << 30
    size = min(machine.memory_bytes // _KV_SHARE, machine.available_bytes // 2)
    return max(_KV_SMALLEST, size // (64 * _MIB) * (64 * _MIB))  # a round number, the same from one start to the next


# --- reading ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Cgroup:
    """One folder of a cgroup hierarchy; a limit of any folder from the process's own up to the root holds."""

    folder: Path
    is_v2: bool

    @property
    def cpu_quota(self) -> float | None:
        """Cores; None without a limit."""
        if self.is_v2:
            quota, _, period = _read(self.folder / "cpu.max").partition(" ")
        else:
            quota, period = _read(self.folder / "cpu.cfs_quota_us"), _read(self.folder / "cpu.cfs_period_us")
        if not (quota.strip().isdecimal() and period.strip().isdecimal() and int(period)):
            return None  # "max", or -1
        return int(quota) / int(period)

    @property
    def memory_limit(self) -> int | None:
        """Bytes; None without a limit."""
        # Above memory.high the kernel slows a process down until it is below again: for us that is the limit.
        names = ("memory.max", "memory.high") if self.is_v2 else ("memory.limit_in_bytes",)
        found = [int(text) for name in names if (text := _read(self.folder / name).strip()).isdecimal()]
        return min((limit for limit in found if limit < _UNLIMITED), default=None)

    @property
    def memory_used(self) -> int:
        """Bytes in use, without file pages that the kernel can drop."""
        used = _read(self.folder / ("memory.current" if self.is_v2 else "memory.usage_in_bytes")).strip()
        droppable = "inactive_file" if self.is_v2 else "total_inactive_file"
        rows = (line.split() for line in _read(self.folder / "memory.stat").splitlines())
        dropped = next((int(row[1]) for row in rows if len(row) == 2 and row[0] == droppable), 0)
        return max(0, int(used) - dropped) if used.isdecimal() else 0


def _cgroups(root: Path) -> Iterator[_Cgroup]:
    """Every cgroup folder whose limits hold for this process.

    Each line of /proc/self/cgroup is `number:controllers:path`. In a container the path may be the host's and not be
    there; then the mount's root is the container's own group, which is looked at in every case.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            is_v2, bases = True, [mount, mount / "unified"]
        elif wanted := {"cpu", "memory"} & set(controllers.split(",")):
            is_v2, bases = False, [mount / controllers, *(mount / name for name in sorted(wanted))]
        else:
            continue
        own = path.strip("/")
        for base in bases:
            for folder in dict.fromkeys([*(base / part for part in (own, *map(str, Path(own).parents))), base]):
                if folder.is_dir():
                    yield _Cgroup(folder, is_v2)


def _capacities(root: Path, affinity: Collection[int]) -> dict[int, int]:
    """Relative speed of each core, of those that the kernel gives one."""
    texts = {core: _read(root / f"sys/devices/system/cpu/cpu{core}/cpu_capacity").strip() for core in affinity}
    return {core: int(text) for core, text in texts.items() if text.isdecimal()}


def own_affinity() -> Collection[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _sysconf_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
