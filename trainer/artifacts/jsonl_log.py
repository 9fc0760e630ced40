"""Files of JSON lines, one object for each step or evaluation; a kill leaves them readable."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune import files
from autotune.errors import OutputError


@dataclass(frozen=True, slots=True)
class JsonlLog:
    """A file of records that each have a `step`, in order."""

    path: Path

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends the record; raises OutputError when the disk cannot be written any more."""
        line = json.dumps(files.finite(record), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path} ({error.strerror})",
                "free some space, and the same command resumes from the last checkpoint, if there is "
                "one",
            ) from error

    def sync(self) -> None:
        """Returns once all lines are on the disk: a checkpoint must not outlive its steps' lines."""
        if self.path.exists():
            files.sync(self.path)

    def read(self) -> list[dict[str, Any]]:
        """The records, up to a line that a kill cut off."""
        if not self.path.exists():
            return []
        records: list[dict[str, Any]] = []
        for line in self.path.read_bytes().split(b"\n")[:-1]:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not isinstance(record, dict) or "step" not in record:
                break
            records.append(record)
        return records

    def forget_after(self, step: int) -> None:
        """Drops the records after that step, which runs again, and a line that a kill cut off."""
        if not self.path.exists():
            return
        kept = [record for record in self.read() if record["step"] <= step]
        files.write_text(
            self.path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in kept)
        )
