"""The evidence of one probe: its peak, its speed and its verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autotune.cause import Cause, Failure
from autotune.choices import Prefer
from autotune.readings import DeviceBudget, Measured, Report
from autotune.search import SPEED_SHARE, knee
from autotune.units import format_bytes
from autotune.verdict import Verdict

MARGIN_SPREADS = 2
"""Spreads of equal steps that the verdict leaves as a margin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A size that was probed. Memory is of the device with the least headroom; bytes, seconds."""

    size: int
    """The micro-batch; the largest one if the ranks' differ."""
    verdict: Verdict
    peak: int | None
    """Our own peak, others' memory subtracted; None when the probe ended before it could tell."""
    seconds: float
    """Wall time of the whole probe, a worker's start included."""
    sizes: tuple[int, ...] = ()
    """The micro-batch of each rank."""
    budgets: tuple[DeviceBudget, ...] = ()
    """What the devices allowed when it ran: others may have come or gone since."""
    measured: tuple[Measured, ...] = ()
    """Each device, in the order of the budgets."""
    tightest: int = 0
    """The index of the budget with the least headroom; the peaks and `static_bytes` are that device's."""
    static_bytes: int | None = None
    activation_peak: int | None = None
    host_peak: int | None = None
    """Highest memory of all workers together, shared pages counted once; loaders are measured apart."""
    samples_per_second: float | None = None
    """Over all devices, warm-up excluded, at the longest lengths of the data."""
    tokens_per_second: float | None = None
    """Padding not counted."""
    speed_spread: float | None = None
    """Range of the timed steps' seconds, as a share of their mean; None for a single step."""
    failure: Failure | None = None
    """Why the verdict does not follow from the peak; None for a probe that was measured in full."""

    @property
    def reason(self) -> str | None:
        """Why the verdict does not follow from peak and budget alone, in words to show."""
        if self.failure is not None:
            return str(self.failure)
        if self.verdict is not Verdict.OVER or self.peak is None or not self.budgets:
            return None
        budget = self.budgets[self.tightest]
        if self.peak > budget.budget:
            return None
        return f"leaves less than the margin for noise, {format_bytes(budget.margin)}"

    @property
    def failed_rank(self) -> int | None:
        """The rank that failed first, where one did."""
        return None if self.failure is None else self.failure.rank

    @property
    def sequences(self) -> int:
        """Sequences of one micro-batch on every rank, summed over the ranks."""
        return sum(self.sizes) or self.size

    @property
    def is_even(self) -> bool:
        """Whether all ranks took the same size."""
        return len(set(self.sizes)) < 2

    @property
    def device_peaks(self) -> tuple[int, ...]:
        """Our peak on each device."""
        return tuple(device.peak for device in self.measured)


def with_margins(
    budgets: Iterable[DeviceBudget], trials: Iterable[Trial]
) -> tuple[DeviceBudget, ...]:
    """The budgets with the margin that the noise of these trials asks for.

    The noise is the largest spread of a device's repeated steps, in bytes: it hardly grows with the
    size. Of two probes that repeat a step, with normal noise, one further step in thirty exceeds the
    higher one by twice the larger spread; the search aims at 1 % below the budget besides.
    """
    measured = [trial.measured for trial in trials if trial.measured]
    return tuple(
        replace(budget, margin=MARGIN_SPREADS * max((m[i].spread for m in measured), default=0))
        for i, budget in enumerate(budgets)
    )


def with_verdict(trial: Trial, budgets: Sequence[DeviceBudget]) -> Trial:
    """The trial against these budgets: its verdict, and the device that has the least headroom."""
    over = [
        device.peak - budget.usable for device, budget in zip(trial.measured, budgets, strict=True)
    ]
    tightest = over.index(max(over))
    worst = trial.measured[tightest]
    return replace(
        trial,
        verdict=Verdict.OVER if over[tightest] > 0 else Verdict.FITS,
        budgets=tuple(budgets),
        tightest=tightest,
        peak=worst.peak,
        static_bytes=worst.static_bytes,
        activation_peak=worst.activation_peak,
    )


def reevaluate(trial: Trial, budgets: Sequence[DeviceBudget]) -> Trial | None:
    """An earlier trial under these budgets; None if its verdict there is unknown.

    A probe that ended without a peak was too large for the budget of its time, and for any
    smaller one; under a larger one it may fit.
    """
    if trial.budgets == tuple(budgets):
        return trial
    if trial.measured and trial.failure is None:
        return with_verdict(trial, budgets)
    pairs = zip(trial.budgets, budgets, strict=True)
    return trial if all(new.budget <= old.budget for old, new in pairs) else None


def fitting(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that fit, of the sizes that fitted when they ran last: a size may be probed again."""
    known = list(trials)
    last = {(trial.size, trial.sizes): trial.verdict for trial in known}
    fits = [trial for trial in known if trial.verdict is Verdict.FITS]
    return [trial for trial in fits if last[trial.size, trial.sizes] is Verdict.FITS]


def steadiest(fits: Iterable[Trial]) -> dict[int, Trial]:
    """One trial of each size, by its sequences: the one whose timed steps spread least."""
    return {t.sequences: t for t in sorted(fits, key=lambda t: t.speed_spread or 0.0, reverse=True)}


def choose(trials: Iterable[Trial], prefer: Prefer) -> Trial | None:
    """The trial to train with: the largest that fits, or the smallest that is as fast as any."""
    fits = steadiest(fitting(trials))
    if not fits:
        return None
    if prefer == "memory":
        return fits[max(fits)]
    return fits[knee({size: trial.samples_per_second or 0.0 for size, trial in fits.items()})]


def undecided(trials: Sequence[Trial]) -> int | None:
    """A size to measure again, since its speed spreads too widely to tell it from the fastest; else None.

    Each speed may be off by half its spread. Where two sizes may both be as fast as any, the one that
    spreads most is measured again, once.
    """
    fits = [trial for trial in steadiest(fitting(trials)).values() if trial.samples_per_second]
    ranges = {trial.size: speed_range(trial) for trial in fits}
    least = SPEED_SHARE * max((low for low, _ in ranges.values()), default=0.0)
    contenders = [trial for trial in fits if ranges[trial.size][1] >= least]
    probed = [trial.size for trial in trials]
    wide = [
        trial for trial in contenders
        if (trial.speed_spread or 0.0) / 2 > 1 - SPEED_SHARE and probed.count(trial.size) == 1
    ]  # fmt: skip
    if len(contenders) < 2 or not wide:
        return None
    return max(wide, key=lambda trial: trial.speed_spread or 0.0).size


def speed_range(trial: Trial) -> tuple[float, float]:
    """The lowest and the highest samples/s that the spread allows."""
    speed, off = trial.samples_per_second or 0.0, (trial.speed_spread or 0.0) / 2
    return speed * (1 - off), speed * (1 + off)


def measured_trial(
    sizes: Sequence[int],
    reports: Sequence[Report],
    measured: Sequence[Measured],
    budgets: Sequence[DeviceBudget],
    *,
    seconds: float,
    host_peak: int | None = None,
) -> Trial:
    """The trial of a probe that ran to its end: `reports` by rank, `measured` and `budgets` by device.

    A probe that fits only because the allocator freed its cache and tried again is over.
    """
    step, timed = max(
        (sum(report.seconds) / len(report.seconds), report.seconds) for report in reports
    )
    tokens = sum(report.tokens for report in reports)
    trial = with_verdict(
        Trial(
            size=max(sizes),
            sizes=tuple(sizes),
            verdict=Verdict.FITS,
            peak=None,
            seconds=seconds,
            measured=tuple(measured),
            host_peak=host_peak,
            samples_per_second=sum(report.samples for report in reports) / step,
            tokens_per_second=tokens / step if tokens else None,
            speed_spread=(max(timed) - min(timed)) / step if len(timed) > 1 else None,
        ),
        budgets,
    )
    if trial.verdict is Verdict.FITS and any(report.retries for report in reports):
        return replace(trial, verdict=Verdict.OVER, failure=Failure(cause=Cause.THRASHING))
    return trial
