"""What a process may use of a machine, read from folders that are made as the kernel makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightschool.machine import Machine, compute_threads, has_bf16, kv_cache_bytes, read_machine, usable_cores

GIB = 1 << 30
MEMINFO = "MemTotal:       25165824 kB\nMemFree:         1048576 kB\nMemAvailable:   16777216 kB\nHugePages_Total:       0\n"
XEON = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Processor\nflags\t\t: fpu avx2 avx512f avx512_vnni"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve i8mm bf16 dgh rng\n"
APPLE_M1 = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp jscvt fcma lrcpc dcpop sha3 asimddp sha512 asimdfhm\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 24 GiB without cgroups."""
    write(tmp_path, {"proc/meminfo": MEMINFO, "proc/cpuinfo": XEON})
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def machine_of(root: Path, *, cores: int = 8, environment: dict[str, str] | None = None) -> Machine:
    return read_machine(root, environment=environment or {}, affinity=range(cores))


def machine(*, cores: int = 8, memory: int = 24 * GIB, available: int = 20 * GIB) -> Machine:
    return Machine(cores=cores, memory_bytes=memory, available_bytes=available, has_bf16=False, name="")


def test_this_very_machine_is_read() -> None:
    """Whatever runs this test has a core, memory and a name."""
    found = read_machine()
    assert found.cores >= 1
    assert 0 < found.available_bytes <= found.memory_bytes
    assert found.name


def test_without_limits_everything_is_there(root: Path) -> None:
    """Every core that the process may run on, and the memory of /proc/meminfo."""
    assert machine_of(root) == Machine(
        cores=8, memory_bytes=24 * GIB, available_bytes=16 * GIB, has_bf16=False, name="Intel(R) Xeon(R) Processor"
    )


def test_a_system_without_proc_has_no_limits(tmp_path: Path) -> None:
    """As on macOS: what cannot be read limits nothing, and bf16 counts as missing."""
    found = machine_of(tmp_path)
    assert (found.cores, found.has_bf16) == (8, False)
    assert found.memory_bytes == found.available_bytes > 0


@pytest.mark.parametrize(
    ("groups", "cores", "memory", "available"),
    [
        # A container of Docker or Kubernetes: its own group is the root of the mount.
        ({"cpu.max": "300000 100000\n", "memory.max": f"{4 * GIB}\n", "memory.current": f"{GIB}\n"}, 3, 4 * GIB, 3 * GIB),
        # A unit of systemd, whose slice is the stricter one; nothing else is said of memory.
        ({"app.slice/cpu.max": "150000 100000", "app.slice/night.service/cpu.max": "max 100000"}, 1, 24 * GIB, 16 * GIB),
        # A soft limit is one too; pages of files that can be dropped are free; a full group has nothing.
        (
            {
                "app.slice/night.service/memory.max": "max",
                "app.slice/night.service/memory.high": str(2 * GIB),
                "app.slice/night.service/memory.current": str(2 * GIB),
                "app.slice/night.service/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            8,
            2 * GIB,
            GIB,
        ),
        ({"memory.max": str(GIB), "memory.current": str(2 * GIB)}, 8, GIB, 0),
        ({"memory.max": "what", "cpu.max": "5", "cpu.weight": "1"}, 8, 24 * GIB, 16 * GIB),
    ],
)
def test_limits_of_cgroup_2(root: Path, groups: dict[str, str], cores: int, memory: int, available: int) -> None:
    """The strictest limit of the process's group and those above it holds, for cores and for memory."""
    write(root, {"proc/self/cgroup": "0::/app.slice/night.service\n"} | {f"sys/fs/cgroup/{k}": v for k, v in groups.items()})
    found = machine_of(root)
    assert (found.cores, found.memory_bytes, found.available_bytes) == (cores, memory, available)


@pytest.mark.parametrize("inside", ["docker/4f2a/", ""])
def test_limits_of_cgroup_1(root: Path, inside: str) -> None:
    """Each controller has a mount of its own; in a container the group's path is the host's and the mount its own."""
    groups = {
        "proc/self/cgroup": "4:memory:/docker/4f2a\n3:cpu,cpuacct:/docker/4f2a\n1:name=systemd:/docker/4f2a\n",
        f"sys/fs/cgroup/cpu,cpuacct/{inside}cpu.cfs_quota_us": "200000\n",
        f"sys/fs/cgroup/cpu,cpuacct/{inside}cpu.cfs_period_us": "100000\n",
        f"sys/fs/cgroup/memory/{inside}memory.limit_in_bytes": str(3 * GIB),
        f"sys/fs/cgroup/memory/{inside}memory.usage_in_bytes": str(2 * GIB),
        f"sys/fs/cgroup/memory/{inside}memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n",
    }
    write(root, groups)
    found = machine_of(root)
    assert (found.cores, found.memory_bytes, found.available_bytes) == (2, 3 * GIB, 2 * GIB)


def test_no_limit_of_cgroup_1_is_none(root: Path) -> None:
    """-1 of the quota and the number near 2**63 of the memory mean that there is no limit."""
    unlimited = {
        "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    write(root, unlimited)
    assert (machine_of(root).cores, machine_of(root).memory_bytes) == (8, 24 * GIB)


def test_slow_cores_get_no_compute_thread(root: Path) -> None:
    """Of four fast and four slow cores, as Apple's and many Arm processors have, four compute."""
    for core in range(8):
        write(root, {f"sys/devices/system/cpu/cpu{core}/cpu_capacity": "1024\n" if core < 4 else "458\n"})
    assert machine_of(root).cores == 4
    assert usable_cores([5, 6], {5: 458, 6: 458}, None) == 2  # bound to slow ones only: those are what there is


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (16.0, 4), (2.0, 2), (1.9, 1), (0.25, 1)])
def test_a_quota_carries_whole_threads(quota: float | None, cores: int) -> None:
    """A thread that the quota does not carry would stop all others in every period; one thread there is always."""
    assert usable_cores(range(4), {}, quota) == cores


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        (XEON, False),
        (XEON + " avx512_bf16", True),
        (XEON + " amx_bf16 amx_tile", True),
        (GRAVITON, True),
        (APPLE_M1, False),
        ("flags : no_bf16_here", False),
        ("", False),
    ],
)
def test_bf16_is_native_where_the_processor_says_so(cpuinfo: str, native: bool) -> None:
    """By the names that Linux has for AVX512-BF16, AMX and Arm's BF16."""
    assert has_bf16(cpuinfo, {}) is native


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("limit", "native"),
    [("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_BF16", True), ("AVX512_CORE_AMX", True), ("ALL", True)],
)
def test_a_limit_on_instructions_makes_a_new_machine_an_old_one(name: str, limit: str, native: bool) -> None:
    """oneDNN obeys the variable in both its names, so bf16 is as slow as where the processor lacks it."""
    assert has_bf16(XEON + " amx_bf16", {name: limit}) is native


def test_an_arm_processor_is_named_by_its_architecture(root: Path) -> None:
    """/proc/cpuinfo of Arm has numbers where x86 has a name."""
    write(root, {"proc/cpuinfo": GRAVITON})
    assert machine_of(root).name
    assert machine_of(root).has_bf16


@pytest.mark.parametrize(
    ("setting", "environment", "spare", "threads"),
    [
        (0, {}, 0, 8),
        (0, {}, 1, 7),
        (0, {"OMP_NUM_THREADS": "3"}, 1, 3),
        (0, {"OMP_NUM_THREADS": "4,2"}, 0, 4),
        (0, {"OMP_NUM_THREADS": ""}, 0, 8),
        (0, {"OMP_NUM_THREADS": "many"}, 0, 8),
        (0, {"OMP_NUM_THREADS": "0"}, 0, 8),
        (5, {"OMP_NUM_THREADS": "3"}, 1, 5),
        (0, {}, 9, 1),
    ],
)
def test_threads_are_set_or_counted(setting: int, environment: dict[str, str], spare: int, threads: int) -> None:
    """The setting goes before OMP_NUM_THREADS, and that before the number of cores; never less than one."""
    assert compute_threads(machine(), setting, environment, spare=spare) == threads


@pytest.mark.parametrize(
    ("setting", "memory", "available", "size"),
    [
        (0, 24 * GIB, 20 * GIB, 3 * GIB),
        (0, 24 * GIB, 4 * GIB, 2 * GIB),
        (0, 8 * GIB + 12345, 8 * GIB, GIB),
        (0, GIB, 0, GIB // 4),
        (5, 8 * GIB, GIB, 5 * GIB),
    ],
)
def test_the_kv_cache_fits_the_memory(setting: int, memory: int, available: int, size: int) -> None:
    """An eighth of the memory, half of what is free where that is less, never too little to start; a setting is obeyed."""
    assert kv_cache_bytes(machine(memory=memory, available=available), setting) == size
