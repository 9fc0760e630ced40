"""The folder of a run: which run it holds, whether it can be written, and what is in it.

run.json             settings that identify the run, and whether it is finished
run.toml             all settings, for `chatlm train --config`; profile.toml, which it names
metrics.jsonl        one object per optimizer step
evaluations.jsonl    one object per evaluation
checkpoint-N/        what a resume needs after step N; damaged-checkpoint-N, one that cannot be read
config.json, model.safetensors, tokenizer…    the final model; README.md, its card
adapter/             LoRA's weights, as peft reads them
loss.png, loss.svg   the run's losses
tracking/            logs of TensorBoard or Weights & Biases
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from autotune import files
from autotune.errors import OutputError
from autotune.units import format_bytes
from trainer.artifacts.jsonl_log import JsonlLog

OURS = ("config.json", "metrics.jsonl", "evaluations.jsonl", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "loss.png",
        "loss.svg", "adapter", "tracking")  # fmt: skip
"""What a run leaves beside its checkpoints and run.json. config.json comes first: it marks a model.
run.toml and profile.toml are replaced, never removed: the new run may read them (`--config … --fresh`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """What a run learns, by content: file names and formats may change."""

    rows: int
    tokens: int
    digest: str
    """The token store's."""

    def __str__(self) -> str:
        return f"{self.rows:,} rows of {self.tokens:,} tokens"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A place for one run."""

    path: Path

    @property
    def metrics(self) -> JsonlLog:
        return JsonlLog(self.path / "metrics.jsonl")

    @property
    def tracking(self) -> Path:
        return self.path / "tracking"

    @property
    def evaluations(self) -> JsonlLog:
        return JsonlLog(self.path / "evaluations.jsonl")

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the oldest first."""
        found = [p for p in self.path.glob("checkpoint-*") if p.name[11:].isdigit()]
        return sorted(found, key=lambda p: int(p.name[11:]))

    def check(self, run_key: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
        """The key as run.json has it; refuses what `claim` would refuse, and writes nothing.

        Raises:
            OutputError: it holds another run, or this run is finished, or it cannot be written.
        """
        files.check_writable(self.path, "choose another --output-dir")
        if not self.path.exists():
            return run_key
        self._check_ours()
        if fresh or (known := self._read()) is None:
            return run_key
        run_key = _as_known(run_key, known)
        is_same = known["identity"] == run_key
        if not is_same and (self.checkpoints() or self.metrics.path.exists()):
            what, advice = _difference(known["identity"], run_key)
            raise OutputError(
                f"{self.path} holds another run ({what})",
                advice.format(folder=self.path)
                + "use --fresh to replace it, or another --output-dir",
            )
        if is_same and known["finished"]:
            raise OutputError(
                f"{self.path} holds this run, which is finished",
                "use --fresh to train it again, or another --output-dir",
            )
        return run_key

    def claim(
        self,
        run_key: dict[str, Any],
        *,
        fresh: bool,
        learning_rate: float | None = None,
        data: DataRecord | None = None,
    ) -> None:
        """Makes the folder this run's, after `check`; an unfinished part of the run stays.

        `learning_rate` is the run's peak rate, the user's or the default; `data`, what it learns.

        Raises:
            OutputError: as `check` does, or the unfinished part was trained on other data.
        """
        run_key = self.check(run_key, fresh=fresh)
        if not fresh:
            self._check_data(data)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                self._clear()
            self._tidy()
            record = None if data is None else asdict(data)
            rate = {"learning_rate": learning_rate}
            self._write({"identity": run_key, **rate, "data": record, "finished": False})
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.path}: {error.strerror}", "choose another --output-dir"
            ) from error

    def check_space(self, need: int) -> None:
        """Raises OutputError when the disk has less than `need` bytes; the folder need not exist."""
        free = shutil.disk_usage(files.nearest(self.path)).free
        if free < need:
            raise OutputError(
                f"{self.path} has {format_bytes(free)} free, the run's checkpoints and model need "
                f"about {format_bytes(need)}",
                "free some, or choose another --output-dir",
            )

    def finish(self) -> None:
        self._note(finished=True)

    def note_model(self, files: list[str]) -> None:
        """Records the final model's files before they are written, so that `--fresh` removes them."""
        self._note(model=files)

    def set_aside(self, checkpoint: Path) -> Path:
        """Renames a checkpoint that cannot be read, so that the next one may take its place."""
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        return checkpoint.rename(aside)

    def _note(self, **values: Any) -> None:
        known = self._read()
        assert known is not None
        self._write({**known, **values})

    def _check_data(self, data: DataRecord | None) -> None:
        known = (self._read() or {}).get("data")
        if known is None or data is None or not self.checkpoints():
            return
        old = DataRecord(**known)
        if old.digest != data.digest:
            what = (
                f"{old}, now {data}"
                if str(old) != str(data)
                else f"as before {old}, of other content"
            )
            raise OutputError(
                f"the data of the run in {self.path} has changed: {what}",
                "put the data back to resume, use --fresh to begin anew, or another --output-dir",
            )

    def _check_ours(self) -> None:
        """Raises OutputError if other things are in the folder: not even `--fresh` removes those."""
        if (self.path / "run.json").is_file():
            return
        if others := [p.name for p in self.path.iterdir() if not p.name.startswith(".")]:
            raise OutputError(
                f"{self.path} holds other things ({', '.join(sorted(others)[:3])})",
                "choose an empty --output-dir",
            )

    def _read(self) -> dict[str, Any] | None:
        file = self.path / "run.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:  # not JSON, or not text at all
            raise OutputError(
                f"{file} is damaged ({error})", "use --fresh to start anew, or another --output-dir"
            ) from error
        if not isinstance(document, dict) or not {"identity", "finished"} <= set(document):
            raise OutputError(f"{file} is not a run of chatlm's", "choose another --output-dir")
        return document

    def _write(self, document: dict[str, Any]) -> None:
        files.write_text(self.path / "run.json", json.dumps(document, indent=1))

    def _clear(self) -> None:
        """Removes what a run of ours left, and nothing else."""
        files = [self.path / name for name in [*OURS, *self._model_files()]]
        for path in [*files, *self.checkpoints(), *self.path.glob("damaged-checkpoint-*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Removes what a killed process had begun."""
        for folder in [*self.path.glob(".checkpoint-*"), *self.path.glob(".model")]:
            shutil.rmtree(folder)

    def _model_files(self) -> list[str]:
        try:
            known = self._read() or {}
        except OutputError:  # damaged: --fresh replaces it
            return []
        return [Path(name).name for name in known.get("model", [])]


def _as_known(run_key: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The key as the record writes it, where the two mean the same.

    JSON reads a tuple back as a list. The run.toml gives the run's learning rate as the user's choice,
    even if it was the model's default or a scaled one.
    """
    run_key = json.loads(json.dumps(run_key))
    rate = known.get("learning_rate")
    if rate is not None and (run_key["learning_rate"], run_key["rate_scale"]) == (rate, 1.0):
        same = {name: known["identity"].get(name) for name in ("learning_rate", "rate_scale")}
        return {**run_key, **same}
    return run_key


LONGER = (
    "its learning rates depend on its length, so the length cannot change: finish it as it was, then "
    "train on with --model {folder} and another --output-dir, or "
)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """The first setting that differs, as `name old, now new`, and further advice."""
    for key, value in new.items():
        if isinstance(value, dict) and old.get(key) != value:
            return _difference(old.get(key, {}), value)
        if old.get(key) != value:
            what = f"{key.replace('_', ' ')} {old.get(key)}, now {value}"
            return what, LONGER if key in ("max_steps", "epochs") else ""
    return "other settings", ""


@contextmanager
def refusals(folder: RunFolder, name: str, need: int) -> Iterator[None]:
    """Turns an error of writing, as on a full disk, into an OutputError with the numbers."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        free = shutil.disk_usage(folder.path).free
        known = folder.checkpoints()
        after = f"the same command resumes from {known[-1].name}" if known else "nothing was saved"
        raise OutputError(
            f"cannot write {folder.path / name} ({reason}): it needs {format_bytes(need)}, and "
            f"{format_bytes(free)} are free",
            f"free some ({after})",
        ) from error
