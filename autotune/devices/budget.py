"""The limits at which a probe is stopped, so that it harms no tenant.

A probe that passes its target may run to its end: it tells the search how far it is over. The hard limit lies
a small margin above the target and leaves a reserve of the device free.
"""

from collections.abc import Sequence

from autotune.cause import Cause, Failure
from autotune.errors import DeviceError
from autotune.readings import DeviceBudget, DeviceReading, HostReading
from autotune.units import format_bytes

HARD_LIMIT_MARGIN = 0.05
"""Share of a device that a probe may take beyond the target."""
RESERVE = 0.02
"""Share of a device that stays free, unless the target is higher."""
HOST_FLOOR = 0.03
"""Share of host memory that must stay free, whatever the target."""


def device_breach(
    budgets: Sequence[DeviceBudget], used: Sequence[int]
) -> tuple[int, Failure] | None:
    """The first device past its hard limit, and the failure; `used` is everyone's, by device, bytes."""
    for index, (budget, highest) in enumerate(zip(budgets, used, strict=True)):
        ours = highest - budget.others
        if budget.hard_limit is not None and ours > budget.hard_limit:
            return index, Failure(
                cause=Cause.HARD_LIMIT, device=budget.name, held=ours, limit=budget.hard_limit
            )
    return None


def host_breach(host: HostReading, target: float) -> Failure | None:
    """The failure if host memory is past its floor or its target: the workers must end; else None."""
    if host.free <= HOST_FLOOR * host.total:
        return Failure(cause=Cause.HOST_OOM, detail="host memory ran out, the workers were stopped")
    if host.used > max(target, min(target + HARD_LIMIT_MARGIN, 1 - HOST_FLOOR)) * host.total:
        return over_host_target(host, target)
    return None


def over_host_target(host: HostReading, target: float) -> Failure:
    """The failure of a size that fits the devices and needs more host memory than `target` allows."""
    return Failure(cause=Cause.HOST_TARGET, held=host.used, limit=int(target * host.total))


def budgets(baseline: Sequence[DeviceReading], target: float) -> tuple[DeviceBudget, ...]:
    """The budget of each device.

    Raises:
        DeviceError: others hold the target already.
    """
    return tuple(budget(reading, reading.used, target) for reading in baseline)


def budget(device: DeviceReading | DeviceBudget, others: int, target: float) -> DeviceBudget:
    """The budget of one device beside `others`, bytes; raises as `budgets` does."""
    total, name = device.total, device.name
    ours = int(target * total) - others
    if ours <= 0:
        raise DeviceError(
            f"{name}: others hold {format_bytes(others)} of {format_bytes(total)}, which is the "
            f"whole target of {100 * target:.3g} % already",
            "tune for a higher --target-vram, or wait until they are done",
        )
    share = max(target, min(target + HARD_LIMIT_MARGIN, 1 - RESERVE))
    return DeviceBudget(
        device=device.device,
        name=name,
        total=total,
        others=others,
        budget=ours,
        hard_limit=int(share * total) - others,
    )


def context_bytes(unaccounted: int, others: int) -> int:
    """What we hold of a card outside our allocator (CUDA context, kernels, NCCL), bytes.

    `unaccounted` is everyone's use less what our allocator holds now, `others` the tenants' use.
    """
    return max(0, unaccounted - others)
