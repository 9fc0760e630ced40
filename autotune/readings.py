"""What a meter shows at one moment. Values only: the meters are in `nvml` and `host`."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """One device at one moment; a figure that the driver does not give is `None`."""

    device: str
    """The device's UUID; `cpu` for host memory, `cpu:RANK` for an emulated card."""
    name: str
    total: int
    """Bytes."""
    used: int
    """Bytes, everyone's: `total − free`."""
    utilization: float | None = None
    """Share of the last second in which a kernel ran, 0..1."""
    temperature: float | None = None
    """Degrees Celsius."""
    power: float | None = None
    """Watts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBudget:
    """The memory that we may hold of one device: `budget = target × total − others`, in bytes."""

    device: str
    name: str
    total: int
    others: int
    """Held by others; first read before any worker of ours starts."""
    budget: int
    hard_limit: int | None = None
    """A probe of ours is stopped above it: the budget and a small margin (`devices.budget`)."""
    margin: int = 0
    """Bytes of the budget that a peak must leave, since training's will differ from it by the noise."""

    @property
    def usable(self) -> int:
        """The highest peak that fits."""
        return self.budget - self.margin

    @property
    def stops_early(self) -> bool:
        """Whether an allocation fails at our own limit before the device runs out of memory."""
        return self.hard_limit is not None and self.hard_limit < self.total - self.others


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a process holds of the host beside its run's memory, bytes; zeros for a GPU."""

    libraries: int = 0
    """Anonymous memory of the interpreter and its libraries, from before the run built anything."""
    mapped: int = 0
    """Resident pages of mapped files: code, the token store. The page cache decides how many."""

    def __add__(self, other: "Outside") -> "Outside":
        return Outside(
            libraries=self.libraries + other.libraries, mapped=self.mapped + other.mapped
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One device after a probe, others' memory subtracted; bytes."""

    peak: int
    static_bytes: int
    """Resident before the forward pass."""
    activation_peak: int
    """Peak of forward and backward, apart from the optimizer step's."""
    context: int = 0
    """What the allocator cannot see and the peak includes: the CUDA context, kernels, NCCL; of the host its
    libraries."""
    outside: Outside = Outside()
    """Of a CPU; an emulated card's peak includes none of it."""
    spread: int = 0
    """How far apart the peaks of the repeated worst step lay."""
    reserved: int | None = None
    """The allocator's own peak, cached blocks included."""
    allocated: int | None = None
    """Peak of tensors; the reserved memory beyond it is cache and fragments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """Host memory at one moment, as the tightest cgroup or the machine limits it; bytes."""

    total: int
    used: int

    @property
    def free(self) -> int:
        return self.total - self.used


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a rank's allocator holds between two probes."""

    device: str
    resident: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rank's counters after a probe; bytes and seconds."""

    type: ClassVar[str] = "report"
    device: str
    static_bytes: int
    activation_peak: int
    peak: int
    allocated: int
    """Peak of tensors."""
    resident: int
    retries: int
    seconds: tuple[float, ...]
    """Seconds of each timed step; the warm-up and the step of mixed lengths are not timed."""
    samples: int
    """Samples of one step on this rank; `tokens` excludes padding."""
    tokens: int
    outside: Outside = Outside()
    spread: int = 0
    """The range of the peaks of equal steps, bytes; 0 where only one was run."""

    @property
    def held(self) -> Held:
        return Held(device=self.device, resident=self.resident)
