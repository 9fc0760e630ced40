"""Files of JSON lines, one object for each step or evaluation; a kill leaves them readable."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from autotune import files
from autotune.errors import OutputError

MOST_BYTES = 1 << 30
"""Two million steps."""
LONGEST_LINE = 16 << 20
"""Bytes."""
Fields = Mapping[str, Callable[[Any], bool]]
"""What each record must have; a line without it is no record."""


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    """Whether a float can hold it."""
    return type(value) in (int, float) and abs(value) < 1e300


def _is_loss(value: Any) -> bool:
    """A number, or null where it was not finite."""
    return value is None or _is_number(value)


STEP: Fields = {"step": _is_step}
EVALUATIONS: Fields = {**STEP, "loss": _is_loss}
CURVE: Fields = {**EVALUATIONS, "learning_rate": _is_number}
"""What a plot needs of each step."""
METRICS: Fields = {
    **CURVE, "device_peak_bytes": _is_step, "skipped": lambda value: type(value) is bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class JsonlLog:
    """A file of records that each have a `step`, in order."""

    path: Path
    fields: Fields = field(default_factory=lambda: STEP)

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends the record; raises OutputError when the file cannot be written any more."""
        line = json.dumps(files.finite(record), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            with files.open_plain(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
                file.write(line.encode())
        except OSError as error:
            raise self._refusal(error) from error

    def sync(self) -> None:
        """Returns once all lines are on the disk: a checkpoint must not outlive its steps' lines."""
        if self.path.exists():
            files.sync(self.path)

    def read(self) -> list[dict[str, Any]]:
        """The records; lines that a kill cut off or a disk damaged are left out."""
        return [record for _, record in self._lines()]

    def forget_after(self, step: int) -> None:
        """Drops the records after that step, which runs again, and lines that are no records."""
        kept = [line for line, record in self._lines() if record["step"] <= step]
        if self.path.exists():
            try:
                files.write_bytes(self.path, b"".join(kept))
            except OSError as error:
                raise self._refusal(error) from error

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each line that is a record, and the record."""
        try:
            with files.open_plain(self.path) as file:
                if os.fstat(file.fileno()).st_size > MOST_BYTES:
                    raise OSError(errno.EFBIG, f"it has more than {MOST_BYTES >> 30} GiB")
                for line in _whole_lines(file):
                    record = _object(line)
                    if record is not None and self._is_record(record):
                        yield line, record
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(
                f"cannot read {self.path} ({error.strerror})",
                "remove it, or choose another --output-dir",
            ) from error

    def _is_record(self, record: dict[str, Any]) -> bool:
        return all(name in record and holds(record[name]) for name, holds in self.fields.items())

    def _refusal(self, error: OSError) -> OutputError:
        what = f"cannot write {self.path} ({error.strerror})"
        if not self.path.parent.is_dir():
            return OutputError(
                f"{what}: the folder was removed, moved or unmounted while the run was in it",
                "put it back to resume from its last checkpoint, or train again",
            )
        return OutputError(
            what,
            "free some space, and the same command resumes from the last checkpoint, if there is one",
        )


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines that have an end and are no longer than a record; a damaged file may have any others."""
    is_part = False
    while piece := file.readline(LONGEST_LINE):
        if piece.endswith(b"\n") and not is_part:
            yield piece
        is_part = not piece.endswith(b"\n")


def _object(line: bytes) -> dict[str, Any] | None:
    """The line's object, if it can be written again; half a character cannot."""
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
