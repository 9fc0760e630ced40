"""Host memory as this process is allowed to use it: the machine's, or a cgroup's that is tighter.

psutil knows nothing of cgroups: a container on a large machine would be tuned into its own OOM kill.
`processes` tells one process's share; the caller knows the target.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from autotune.devices.processes import contents, field
from autotune.errors import DeviceError
from autotune.readings import HostReading

OOM_KILLS = b"oom_kill"

FILES = {
    2: (("memory.max", "memory.high"), "memory.current", b"inactive_file"),
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", b"total_inactive_file"),
}
"""By cgroup version: the limits, the use, and the key of inactive file pages in `memory.stat`. The kernel
counts those as used but drops them first, so here they count as free."""


class HostMeter:
    """Finds the files once, reads them anew each time."""

    def __init__(
        self, proc: Path = Path("/proc"), cgroup_root: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._meminfo = proc / "meminfo"
        self._levels: list[tuple[int, str]] = []
        """Version and folder of each cgroup that bounds this process."""
        self._oom_counters = [proc / "vmstat"]
        for version, folders in _cgroups(proc, cgroup_root):
            self._levels += [(version, str(folder)) for folder in folders]
            self._oom_counters += _oom_counters(version, folders)

    def read(self) -> HostReading:
        """Total and used of whatever has the least free: the machine or a cgroup above us.

        Raises:
            DeviceError: /proc is not mounted.
        """
        machine = self.machine()
        levels = (_read_level(*level, machine.total) for level in self._levels)
        readings = [machine, *(reading for reading in levels if reading is not None)]
        return min(readings, key=lambda reading: reading.free)

    def oom_kills(self) -> int:
        """A number that grows with each kernel OOM kill: compare it before and after.

        One kill may count in several files, and a file above our cgroup counts others' kills too:
        the difference says that host memory ran out, not how many processes were killed.
        """
        return sum(field(_text(file), OOM_KILLS) or 0 for file in self._oom_counters)

    def machine(self) -> HostReading:
        """The whole machine, whatever a cgroup allows of it.

        Read here: `psutil.virtual_memory` takes 79 µs and this 18, and the sampler asks five times
        a second (one virtual x86 core, psutil 7.2.2, 2026-11).
        """
        text = _text(self._meminfo)
        total, available = field(text, b"MemTotal:"), field(text, b"MemAvailable:")
        if not total or available is None:
            raise DeviceError(
                f"{self._meminfo} does not show the host's memory", "run where /proc is mounted"
            )
        # in containers with their own /proc/meminfo more may be available than there is in all
        return HostReading(total=total * 1024, used=max(0, total - available) * 1024)


def _read_level(version: int, folder: str, machine: int) -> HostReading | None:
    """`None` without a limit below the machine's memory, or when the cgroup is gone.

    "No limit" is `max` in version 2 and 9223372036854771712 in version 1. A limit of 0 is none either,
    since this process runs. Without a limit `memory.stat` is not read, because the kernel sums it over every
    group below.
    """
    files, use, inactive = FILES[version]
    limits = [limit for file in files if (limit := _number(f"{folder}/{file}"))]
    if not limits or min(limits) >= machine or (current := _number(f"{folder}/{use}")) is None:
        return None
    dropped = field(_text(f"{folder}/memory.stat"), inactive) or 0
    return HostReading(total=min(limits), used=max(current - dropped, 0))


def _cgroups(proc: Path, root: Path) -> Iterator[tuple[int, list[Path]]]:
    """(version, our folder and all above it) of each hierarchy that may count memory."""
    for line in os.fsdecode(_text(proc / "self" / "cgroup")).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not (number.isdigit() and path.startswith("/")):
            continue  # no line of a kernel that we know
        if controllers == "":  # version 2, at `unified` where both are mounted
            unified = root / "unified"
            yield 2, _lineage(unified if unified.is_dir() else root, path)
        elif "memory" in controllers.split(","):
            yield 1, _lineage(root / "memory", path)


def _lineage(mount: Path, path: str) -> list[Path]:
    """The folder of `path` and every one above it, nearest first, up to the mount itself.

    Inside a container the path may be the host's, while the mount shows only our own part.
    """
    folder = mount / path.lstrip("/")
    if ".." in folder.parts or not folder.is_dir():
        return [mount]
    return [folder, *(above for above in folder.parents if above.is_relative_to(mount))]


def _oom_counters(version: int, folders: list[Path]) -> list[Path]:
    if version == 1:  # counts the kills of this very cgroup
        return [folders[0] / "memory.oom_control"]
    counters = [folder / "memory.events" for folder in folders]  # count those below them too
    return [file for file in counters if field(_text(file), OOM_KILLS) is not None][-1:]


def _text(file: str | Path) -> bytes:
    # At any moment a cgroup can be removed, or its files become unreadable: they then count as empty.
    try:
        return contents(file)
    except OSError:
        return b""


def _number(file: str | Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() and len(text) <= 20 else None
