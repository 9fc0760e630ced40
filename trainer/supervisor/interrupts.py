"""What Ctrl-C, SIGTERM and SIGHUP do, in every command.

A closed terminal, a lost connection and `timeout` send two signals within milliseconds. So the first one counts,
and after it only a Ctrl-C that comes a second later: it ends at once. All others change nothing.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN = 1.0
"""Seconds from a signal that counted to the Ctrl-C that counts again."""


class Interrupts:
    """A handler of these signals: one that counts raises KeyboardInterrupt, or is collected."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._counted_at: float | None = None
        """When the last one came that counted."""
        self._collected: list[int] | None = None

    def __call__(self, number: int, _: object) -> None:
        now, last = self._now(), self._counted_at
        is_again = last is not None and number == signal.SIGINT and now - last >= AGAIN
        if not (last is None or is_again):
            return
        self._counted_at = now
        if self._collected is None:
            raise KeyboardInterrupt
        self._collected.append(number)

    def install(self) -> None:
        """Handles the signals from now on; under `nohup` SIGHUP stays ignored."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self)

    def end(self) -> None:
        """From now on no signal counts: the command is over, and the process ends with its exit code.

        Python restores a handler's default while it ends, and would die of a signal then; ignored ones stay so.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def collected(self) -> Iterator[list[int]]:
        """A list that gets the signals that count, so that none raises in the block."""
        came: list[int] = []
        before, self._collected = self._collected, came
        try:
            yield came
        finally:
            self._collected = before


@contextmanager
def collected_interrupts() -> Iterator[list[int]]:
    """A list that gets each signal that counts, so that none raises in the middle of a message."""
    current = signal.getsignal(signal.SIGINT)
    if isinstance(current, Interrupts):
        with current.collected() as came:
            yield came
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    own = Interrupts()
    with own.collected() as came:
        own.install()
        try:
            yield came
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Signals wait for the end of the block, which then raises KeyboardInterrupt."""
    with collected_interrupts() as came:
        yield
    if came:
        raise KeyboardInterrupt
