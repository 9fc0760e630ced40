"""The search of chatlm, and those of its peers, as functions of a simulated device.

The peers know no target: they see only whether a size ran. So their card *is* the budget, and each failure of
theirs is an OOM. Their algorithms are those of accelerate 1.15 (`find_executable_batch_size`),
pytorch-lightning 2.6.6 (`scale_batch_size` with its defaults, the ceiling as `max_val`) and NeMo
(`oomptimizer.py`; it knows no ceiling, here it stops there), read in their sources; plain bisection is nobody's.
An algorithm returns the size to train with, None where it gives up.
"""

from collections.abc import Callable

from autotune.search import NOISE, Search
from bench.simulated_device import Device


def ours(
    device: Device, guess: int | None = None, noise: float = NOISE, is_rough: bool = False
) -> int | None:
    search = Search(
        device.curve.ceiling, int(device.curve.budget), guess, noise=noise, is_rough=is_rough
    )
    while (size := search.ask()) is not None:
        search = device.probe(search, size)
    return search.answer


def accelerate(device: Device) -> int | None:
    """`find_executable_batch_size`: from the ceiling down by a tenth until one runs."""
    size = device.curve.ceiling
    while size > 0 and not device.runs(size):
        size = int(size * 0.9)
    return size or None


def lightning_power(device: Device) -> int | None:
    """Doubles from 2 until one fails; from `max_val` on it returns the size without running it."""
    size, any_success = 2, False
    for _ in range(25):
        if size == 0 or size >= device.curve.ceiling:
            break
        if device.runs(size):
            size, any_success = size * 2, True
        else:
            size //= 2
            if any_success:
                break
    return size or None


def lightning_binsearch(device: Device) -> int | None:
    """Doubles, bisects, and returns 5 % less (its `margin`): a size that it mostly never ran."""
    low, high, size, ceiling = 1, 0, 2, device.curve.ceiling
    successes = 0
    while size < ceiling:
        if device.runs(size):
            successes += 1
            low = size
            if successes >= 25 or (high and high - low <= 1):
                break
            size = (high + low) // 2 if high else min(size * 2, ceiling)
        else:
            high = size
            size = (high + low) // 2
            if high - low <= 1:
                break
    return max(1, int(size * 0.95))


def nemo(device: Device) -> int | None:
    """Doubles from 32 or halves, then bisects until the gap is 5 % of the failing size."""
    low, high, size = 0, 0, min(32, device.curve.ceiling)
    while size >= 1:
        if device.runs(size):
            low = size
        else:
            high = size
        if low == device.curve.ceiling or (low and high and high - low <= max(1, 0.05 * high)):
            break
        if high:
            size = round((low + high) / 2) if low else round(high / 2)
        else:
            size = min(size * 2, device.curve.ceiling)
    return low or None


def bisection(device: Device) -> int | None:
    """Between 0 and the ceiling until one size is left."""
    low, high = 0, device.curve.ceiling + 1
    while high - low > 1:
        size = (low + high) // 2
        low, high = (size, high) if device.runs(size) else (low, size)
    return low or None


ALGORITHMS: dict[str, Callable[[Device], int | None]] = {
    "chatlm": ours,
    "accelerate": accelerate,
    "Lightning power": lightning_power,
    "Lightning binsearch": lightning_binsearch,
    "NeMo OOMptimizer": nemo,
    "bisection": bisection,
}
