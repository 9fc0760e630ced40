"""Host memory on made-up /proc and cgroup trees."""

from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.devices.host import HostMeter
from autotune.errors import DeviceError
from autotune.readings import HostReading

GIB = 2**30
NO_LIMIT = 9223372036854771712
"""What version 1 writes for none."""


class Machine:
    """A made-up machine of 64 GiB of which 40 are available."""

    def __init__(self, root: Path, cgroup: str, total: int = 64 * GIB, free: int = 40 * GIB):
        self.proc = root / "proc"
        self.cgroups = root / "cgroup"
        self.cgroups.mkdir(parents=True)
        write(self.proc / "self" / "cgroup", cgroup)
        write(self.proc / "vmstat", "pgfault 12\noom_kill 3\n")
        self.set_memory(total, free)

    def set_memory(self, total: int, free: int) -> None:
        sizes = f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {free // 1024} kB\n"
        write(self.proc / "meminfo", sizes)

    def v2(
        self, path: str, current: int, limit: int | str = "max", high: int | str = "max",
        inactive: int = 0, oom_kills: int = 0,
    ) -> Path:  # fmt: skip
        folder = self.cgroups / path
        write(folder / "memory.max", f"{limit}\n")
        write(folder / "memory.high", f"{high}\n")
        write(folder / "memory.current", f"{current}\n")
        write(folder / "memory.stat", f"anon 1\ninactive_file {inactive}\nactive_file 5\n")
        write(folder / "memory.events", f"low 0\nmax 7\noom 9\noom_kill {oom_kills}\n")
        return folder

    def v1(
        self, path: str, current: int, limit: int, inactive: int = 0, oom_kills: int = 0
    ) -> Path:
        folder = self.cgroups / "memory" / path
        write(folder / "memory.limit_in_bytes", f"{limit}\n")
        write(folder / "memory.usage_in_bytes", f"{current}\n")
        write(folder / "memory.stat", f"inactive_file 0\ntotal_inactive_file {inactive}\n")
        write(folder / "memory.oom_control", f"under_oom 0\noom_kill {oom_kills}\n")
        return folder

    def sampler(self) -> HostMeter:
        return HostMeter(self.proc, self.cgroups)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_cgroups_the_machine_is_read(tmp_path: Path) -> None:
    """What a container of a machine without limits sees."""
    assert Machine(tmp_path, "0::/\n").sampler().read() == HostReading(
        total=64 * GIB, used=24 * GIB
    )


def test_a_version_2_limit_is_the_total(tmp_path: Path) -> None:
    """File pages that the kernel drops first are not used; above `memory.high` a process crawls."""
    machine = Machine(tmp_path, "0::/job\n")
    machine.v2("job", current=9 * GIB, limit=16 * GIB, inactive=2 * GIB)
    other = Machine(tmp_path / "other", "0::/job\n")
    other.v2("job", current=GIB, limit=16 * GIB, high=12 * GIB)

    assert machine.sampler().read() == HostReading(total=16 * GIB, used=7 * GIB)
    assert other.sampler().read() == HostReading(total=12 * GIB, used=GIB)


def test_a_version_1_limit_is_the_total(tmp_path: Path) -> None:
    """The pages of the cgroups below are in `total_inactive_file`."""
    machine = Machine(tmp_path, "5:cpu,cpuacct:/other\n4:memory:/job\n1:name=systemd:/x\n")
    machine.v1("", current=30 * GIB, limit=NO_LIMIT)
    machine.v1("job", current=9 * GIB, limit=16 * GIB, inactive=2 * GIB)

    assert machine.sampler().read() == HostReading(total=16 * GIB, used=7 * GIB)


@pytest.mark.parametrize("limit", [NO_LIMIT, 64 * GIB, 100 * GIB])
def test_a_limit_that_the_machine_cannot_reach_is_none(tmp_path: Path, limit: int) -> None:
    """Neither is `max`, which the other tests' trees are full of."""
    machine = Machine(tmp_path, "4:memory:/one\n0::/two\n")
    machine.v1("one", current=60 * GIB, limit=limit)
    machine.v2("two", current=60 * GIB, limit=limit)

    assert machine.sampler().read() == HostReading(total=64 * GIB, used=24 * GIB)


def test_the_level_with_the_least_free_counts(tmp_path: Path) -> None:
    """A wide cgroup that others have filled is tighter than a narrow one that is empty."""
    machine = Machine(tmp_path, "0::/slice/pod/job\n")
    machine.v2("slice", current=10 * GIB, limit=48 * GIB)
    machine.v2("slice/pod", current=29 * GIB, limit=32 * GIB)
    machine.v2("slice/pod/job", current=GIB, limit=8 * GIB)

    assert machine.sampler().read() == HostReading(total=32 * GIB, used=29 * GIB)


def test_a_full_machine_is_tighter_than_an_empty_cgroup(tmp_path: Path) -> None:
    """A limit of 16 GiB promises nothing when 2 are left."""
    machine = Machine(tmp_path, "0::/job\n", free=2 * GIB)
    machine.v2("job", current=GIB, limit=16 * GIB)

    assert machine.sampler().read() == HostReading(total=64 * GIB, used=62 * GIB)


def test_nested_version_1_cgroups_are_walked_up(tmp_path: Path) -> None:
    """The limit is often on the container, two above the process."""
    machine = Machine(tmp_path, "4:memory:/docker/box/app\n")
    machine.v1("docker/box/app", current=GIB, limit=NO_LIMIT)
    machine.v1("docker/box", current=3 * GIB, limit=8 * GIB, inactive=GIB)

    assert machine.sampler().read() == HostReading(total=8 * GIB, used=2 * GIB)


def test_hybrid_mounts_are_both_read(tmp_path: Path) -> None:
    """Version 2 lies at `unified` then, most often without a memory controller."""
    machine = Machine(tmp_path, "4:memory:/job\n0::/job\n")
    machine.v1("job", current=2 * GIB, limit=8 * GIB)
    machine.v2("unified/job", current=3 * GIB, limit=4 * GIB)
    machine.v2("job", current=0, limit=1)  # not a cgroup: the root holds mounts only

    assert machine.sampler().read() == HostReading(total=4 * GIB, used=3 * GIB)


@pytest.mark.parametrize("path", ["/docker/4f1d", "/../other", "/gone (deleted)", "/"])
def test_a_container_that_sees_the_hosts_path_reads_its_own_mount(
    tmp_path: Path, path: str
) -> None:
    """Its part of the tree is mounted as the root, whatever the kernel calls it."""
    machine = Machine(tmp_path / "v1", f"4:memory:{path}\n")
    machine.v1("", current=2 * GIB, limit=8 * GIB)
    other = Machine(tmp_path / "v2", f"0::{path}\n")
    other.v2("", current=2 * GIB, limit=8 * GIB)

    assert (
        machine.sampler().read()
        == other.sampler().read()
        == HostReading(total=8 * GIB, used=2 * GIB)
    )


def test_values_are_read_anew_each_time(tmp_path: Path) -> None:
    """A cgroup may be given more memory, or be removed, while we run."""
    machine = Machine(tmp_path, "0::/job\n")
    folder = machine.v2("job", current=GIB, limit=8 * GIB)
    meter = machine.sampler()

    first = meter.read()
    machine.v2("job", current=2 * GIB, limit=16 * GIB)
    second = meter.read()
    for file in folder.iterdir():
        file.unlink()
    machine.set_memory(64 * GIB, 30 * GIB)
    third = meter.read()

    assert first == HostReading(total=8 * GIB, used=GIB)
    assert second == HostReading(total=16 * GIB, used=2 * GIB)
    assert third == HostReading(total=64 * GIB, used=34 * GIB)


@settings(deadline=None)
@given(
    levels=st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 50), st.integers(0, 60)), max_size=4
    ),
    free=st.integers(0, 64),
)
def test_no_level_has_less_free_than_the_reading(
    tmp_path_factory: pytest.TempPathFactory, levels: list[tuple[int, int, int]], free: int
) -> None:
    """What is read is a promise that every level above us keeps."""
    names = ["/".join("abcd"[: depth + 1]) for depth in range(len(levels))]
    path = names[-1] if names else ""
    root = tmp_path_factory.mktemp("machine")
    machine = Machine(root, f"0::/{path}\n", free=free * GIB)
    for name, (limit, current, inactive) in zip(names, levels, strict=True):
        machine.v2(name, current=current * GIB, limit=limit * GIB, inactive=inactive * GIB)

    reading = machine.sampler().read()

    frees = [limit - max(current - idle, 0) for limit, current, idle in levels if limit < 64]
    assert reading.free == min([free, *frees]) * GIB


def test_without_proc_the_error_says_what_is_missing(tmp_path: Path) -> None:
    """As in some sandboxes."""
    with pytest.raises(DeviceError) as caught:
        HostMeter(tmp_path).read()

    assert str(caught.value) == (
        f"{tmp_path}/meminfo does not show the host's memory; run where /proc is mounted"
    )


def test_a_kill_anywhere_is_seen_in_the_difference(tmp_path: Path) -> None:
    """By the machine's counter, by our own in version 1, by the topmost readable in version 2."""
    machine = Machine(tmp_path, "4:memory:/job\n0::/pod/job\n")
    machine.v1("job", current=0, limit=GIB, oom_kills=1)
    machine.v2("unified/pod", current=0, oom_kills=5)
    machine.v2("unified/pod/job", current=0, oom_kills=5)
    meter = machine.sampler()

    counts = [meter.oom_kills()]
    machine.v1("job", current=0, limit=GIB, oom_kills=2)
    counts.append(meter.oom_kills())
    machine.v2("unified/pod", current=0, oom_kills=6)
    counts.append(meter.oom_kills())
    write(machine.proc / "vmstat", "oom_kill 4\n")
    counts.append(meter.oom_kills())

    assert counts == [9, 10, 11, 12]


def test_without_any_counter_there_are_no_kills(tmp_path: Path) -> None:
    """Before Linux 4.13 nothing counts them: a difference of 0 says nothing then."""
    assert HostMeter(tmp_path, tmp_path).oom_kills() == 0


def test_this_machine_can_be_read() -> None:
    """The real files, whatever they are here. Caches of the machine count as free."""
    meter = HostMeter()

    reading = meter.read()

    assert 0 < reading.used < reading.total
    assert meter.machine().total == psutil.virtual_memory().total
    assert meter.oom_kills() >= 0


def test_a_cgroup_without_a_limit_is_not_added_up(tmp_path: Path) -> None:
    """Its figures mean nothing then, so that broken ones do no harm either."""
    machine = Machine(tmp_path, "0::/job\n")
    folder = machine.v2("job", current=GIB)
    write(folder / "memory.stat", "inactive_file nonsense\n")

    assert machine.sampler().read() == HostReading(total=64 * GIB, used=24 * GIB)


ODD_MEMINFO = (
    "", "MemTotal:", "MemTotal: kB", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "MemTotal: -1 kB\nMemAvailable: 1 kB\n",
    "MemTotal: 8 kB\n", f"MemTotal: {'9' * 5000} kB\nMemAvailable: 1 kB\n", "\0",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD_MEMINFO)
def test_a_meminfo_that_shows_no_memory_is_an_error_that_names_it(
    tmp_path: Path, text: str
) -> None:
    """Empty, cut, or of no memory at all, by which nothing can be divided."""
    machine = Machine(tmp_path, "0::/\n")
    write(machine.proc / "meminfo", text)

    with pytest.raises(DeviceError) as caught:
        machine.sampler().read()

    assert str(caught.value) == (
        f"{machine.proc}/meminfo does not show the host's memory; run where /proc is mounted"
    )


def test_more_available_than_there_is_means_that_nothing_is_used(tmp_path: Path) -> None:
    """A container with a /proc of its own may say so."""
    machine = Machine(tmp_path, "0::/\n", total=4 * GIB, free=6 * GIB)

    assert machine.sampler().read() == HostReading(total=4 * GIB, used=0)


@pytest.mark.parametrize(
    "cgroup",
    ["", "\n", "0", "0:", "0:memory", "x::/job\n", "0::job", "\0", "4:memory\n0::/job\u2028:\n"],
)
def test_lines_of_cgroups_that_no_kernel_writes_are_left_out(tmp_path: Path, cgroup: str) -> None:
    assert Machine(tmp_path, cgroup).sampler().read() == HostReading(total=64 * GIB, used=24 * GIB)


@pytest.mark.parametrize("limit", ["0", "", "-1", "9" * 5000, "max max", "\0"])
def test_a_limit_that_is_no_amount_is_none(tmp_path: Path, limit: str) -> None:
    """0 too: a process that runs has some memory, and nothing can be divided by it."""
    machine = Machine(tmp_path, "0::/job\n")
    machine.v2("job", current=GIB, limit=limit, high=limit)

    assert machine.sampler().read() == HostReading(total=64 * GIB, used=24 * GIB)
