"""Whether a run that has begun has gone silent: one that hangs says nothing, and nothing ends it.

A step that takes long is no hang, so that only what is far beyond every step so far counts, and it is
told, not ended. The clock is the caller's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LEAST = 600.0
"""Seconds of silence that are never worth a word: an evaluation or a checkpoint may take them."""
TIMES = 20


@dataclass(slots=True)
class SilenceNotice:
    """How long nothing was heard of a run; silent before its first step, which may wait for anything."""

    heard: float | None = None
    slowest: float = 0.0
    """Seconds of the slowest step."""

    def hear(self, message: Mapping[str, Any], now: float) -> None:
        """Takes note of any message of a worker's."""
        if message["type"] == "step":
            self.slowest = max(self.slowest, message["record"]["seconds"])
        if message["type"] == "step" or self.heard is not None:
            self.heard = now

    def notice(self, now: float, pids: Iterable[int]) -> str | None:
        """A line about a silence that has become too long; once for each."""
        if self.heard is None or now - self.heard < max(LEAST, TIMES * self.slowest):
            return None
        silent, self.heard = now - self.heard, None
        return (
            f"nothing was heard for {silent / 60:.0f} minutes, and the slowest step took "
            f"{self.slowest:.1f} s: the run may hang, as NCCL does when a process is gone, or a file system "
            f"that does not answer; `py-spy dump --pid N` shows where a process is "
            f"({', '.join(map(str, pids))}); Ctrl-C twice ends the run"
        )
