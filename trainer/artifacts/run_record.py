"""`run.json`: which run a folder holds, what it learns, the files of its final model, whether it is finished."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from autotune import files
from autotune.errors import OutputError, first_line, shortened
from trainer.artifacts.manifest import Manifest, as_json, from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """What a run learns or is evaluated on, by content: file names and formats may change."""

    rows: int
    tokens: int
    digest: str
    """The token store's."""

    def __str__(self) -> str:
        return f"{self.rows:,} rows of {self.tokens:,} tokens"

    def difference(self, other: Self) -> str | None:
        """How the other one differs, in words; None where it is the same."""
        if other.digest == self.digest:
            return None
        if str(other) != str(self):
            return f"{self}, now {other}"
        return f"as before {self}, of other content"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The file's content."""

    identity: dict[str, Any]
    """The run key: settings that a resume must have too."""
    finished: bool = False
    learning_rate: float | None = None
    """The peak rate, the user's or the default."""
    data: DataRecord | None = None
    eval_data: DataRecord | None = None
    model: Manifest = field(default_factory=dict)
    """The final model's files; recorded before they are moved to their places."""

    def save(self, folder: Path) -> None:
        document = {**asdict(replace(self, model={})), "model": as_json(self.model)}
        files.write_text(folder / "run.json", json.dumps(document, indent=1))


class DamagedRecord(OutputError):
    """A record that cannot be read: whose run it was cannot be told."""


def read_record(folder: Path) -> RunRecord | None:
    """The folder's record; None without one.

    Raises:
        DamagedRecord: it cannot be read.
        OutputError: it is another program's.
    """
    file = folder / "run.json"
    try:
        document = json.loads(files.read_small(file))
        if not isinstance(document, dict) or not {"identity", "finished"} <= document.keys():
            raise OutputError(f"{file} is not a run of chatlm's", "choose another --output-dir")
        return _record(document)
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else shortened(first_line(error))
        raise DamagedRecord(
            f"{file} is damaged ({reason})", "use --fresh to start anew, or another --output-dir"
        ) from error


def _record(document: dict[str, Any]) -> RunRecord:
    """Raises TypeError or ValueError where a value is of another type."""
    values = {
        **document,
        "data": _data(document.get("data")),
        "eval_data": _data(document.get("eval_data")),
        "model": from_json(document.get("model", {})),
    }
    match values:
        case {"identity": dict(), "finished": bool(), **rest}:
            rate = rest.get("learning_rate")
            if rate is None or isinstance(rate, float | int):
                return RunRecord(**values)
    raise ValueError("a value of another type")


def _data(value: Any) -> DataRecord | None:
    match value:
        case None:
            return None
        case {"rows": int(), "tokens": int(), "digest": str()}:
            return DataRecord(**value)
    raise ValueError("data of another form")
