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

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from autotune import files
from autotune.errors import OutputError
from autotune.file_lock import Lock, holder, try_lock
from autotune.units import format_bytes
from trainer.artifacts import own_files, replacement
from trainer.artifacts.jsonl_log import EVALUATIONS, METRICS, JsonlLog
from trainer.artifacts.manifest import manifest_of
from trainer.artifacts.run_identity import as_known, difference
from trainer.artifacts.run_record import DamagedRecord, DataRecord, RunRecord, read_record

CHOOSE = "choose another --output-dir"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without `flock` say, as some parallel ones."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A place for one run."""

    path: Path

    @property
    def metrics(self) -> JsonlLog:
        return JsonlLog(self.path / "metrics.jsonl", METRICS)

    @property
    def tracking(self) -> Path:
        return self.path / "tracking"

    @property
    def evaluations(self) -> JsonlLog:
        return JsonlLog(self.path / "evaluations.jsonl", EVALUATIONS)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the oldest first; a link to one counts.

        Raises:
            OutputError: the folder cannot be read.
        """
        if not self.path.is_dir():
            return []
        with self._writing():
            paths = list(self.path.iterdir())
        steps = ((own_files.CHECKPOINT.fullmatch(path.name), path) for path in paths)
        found = [(int(match[1]), path) for match, path in steps if match and path.is_dir()]
        return [path for _, path in sorted(found)]

    @contextmanager
    def locked(self) -> Iterator[tuple[int, ...]]:
        """Holds the folder, which is made, until the block ends; a folder that stays empty is removed.

        Yields the descriptors that workers inherit: they hold the folder for as long as they live.

        Raises:
            OutputError: another process holds it, or it cannot be written.
        """
        files.check_writable(self.path, CHOOSE)
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        lock = None
        try:
            with self._writing():
                self.path.mkdir(parents=True, exist_ok=True)
                lock = self._lock()
            yield () if lock is None else (lock.descriptor,)
        finally:
            if lock is not None:
                lock.release()
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()

    def settle(self) -> str | None:
        """Completes or takes back an earlier `--fresh`; a line where the user must know.

        Raises:
            OutputError: the folder cannot be written.
        """
        with self._writing():
            return replacement.settle(self.path, has_saved=self._has_saved())

    def check(self, run_key: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
        """The key as run.json has it; refuses what `claim` would refuse, and writes nothing.

        Raises:
            OutputError: it holds another run, or this run is finished, or it cannot be written.
        """
        files.check_writable(self.path, CHOOSE)
        if not self.path.exists():
            return run_key
        self._check_ours()
        try:
            known = read_record(self.path)
        except DamagedRecord:
            if not fresh:
                raise
            known = None
        if fresh or known is None:
            return run_key
        run_key = as_known(run_key, known)
        is_same = known.identity == run_key
        if not is_same and (self.checkpoints() or self.metrics.path.exists()):
            what, advice = difference(known.identity, run_key)
            raise OutputError(
                f"{self.path} holds another run ({what})",
                advice.format(folder=self.path)
                + "use --fresh to replace it, or another --output-dir",
            )
        if is_same and known.finished:
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
        eval_data: DataRecord | None = None,
    ) -> None:
        """Makes the folder this run's, after `check`; an unfinished part of the run stays.

        With `fresh` the old run is moved aside, until `settle` removes it or puts it back.
        `learning_rate` is the run's peak rate, the user's or the default; `data`, what it learns.

        Raises:
            OutputError: as `check` does, or the unfinished part was trained on other data.
        """
        run_key = self.check(run_key, fresh=fresh)
        known = None if fresh else read_record(self.path)
        if known is not None and self.checkpoints():
            self._check_data("data", known.data, data)
            self._check_data("evaluation data", known.eval_data, eval_data)
        record = RunRecord(
            identity=run_key, learning_rate=learning_rate, data=data, eval_data=eval_data,
            model={} if known is None else known.model,
        )  # fmt: skip
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                replacement.move_aside(self.path)
            own_files.finish_removals(self.path)
            record.save(self.path)

    def check_space(self, need: int, *, first: int = 0, fresh: bool = False) -> None:
        """Raises OutputError when the disk has less than `need` bytes; the folder need not exist.

        With `fresh` the old run's bytes count as free once the first checkpoint, `first` bytes, is written.
        """
        free = shutil.disk_usage(files.nearest(self.path)).free
        if free < (max(first, need - self._old_bytes()) if fresh else need):
            raise OutputError(
                f"{self.path} has {format_bytes(free)} free, the run's checkpoints and model need "
                f"about {format_bytes(need)}",
                f"free some, or {CHOOSE}",
            )

    def finish(self) -> None:
        self._note(finished=True)

    def place_model(self, hidden: Path) -> None:
        """Moves the final model's files here, `config.json` last: a kill leaves all or no model.

        They are recorded first, so that `--fresh` knows them.
        """
        before = own_files.model_of(self.path)
        self._note(model=manifest_of(hidden))
        own_files.place(hidden, self.path, before)

    def set_aside(self, checkpoint: Path) -> Path:
        """Renames a checkpoint that cannot be read, so that the next one may take its place."""
        damaged = checkpoint.with_name(f"damaged-{checkpoint.name}")
        return checkpoint.rename(files.free_name(damaged))

    def _lock(self) -> Lock | None:
        """The folder's lock; None where the file system has none."""
        file = self.path / ".lock"
        try:
            lock = try_lock(file)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return None
            raise OutputError(f"cannot lock {file}: {error.strerror}", CHOOSE) from error
        if lock is None:
            what = f"{self.path} is in use by {holder(file)}"
            raise OutputError(what, f"wait for its end, or {CHOOSE}")
        return lock

    def _note(self, **values: Any) -> None:
        known = read_record(self.path)
        if known is None:
            raise gone(self.path)
        replace(known, **values).save(self.path)

    def _has_saved(self) -> bool:
        """Whether the run has a checkpoint or a final model. A damaged record is not a new run's."""
        try:
            record = read_record(self.path)
        except OutputError:
            record = None
        return bool(self.checkpoints()) or (record is not None and record.finished)

    def _old_bytes(self) -> int:
        """Bytes of the run that is there."""
        if not self.path.is_dir():
            return 0
        names = own_files.names_of(self.path)
        found = (self.path / name for name in names)
        each = (file for path in found for file in (path, *path.rglob("*")) if file.is_file())
        return sum(file.lstat().st_size for file in each)

    def _check_data(self, what: str, old: DataRecord | None, new: DataRecord | None) -> None:
        if old is not None and new is not None and (how := old.difference(new)) is not None:
            raise OutputError(
                f"the {what} of the run in {self.path} has changed: {how}",
                "put the data back to resume, use --fresh to begin anew, or another --output-dir",
            )

    def _check_ours(self) -> None:
        """Raises OutputError if other things are in the folder: not even `--fresh` removes those."""
        if (self.path / own_files.RECORD).is_file():
            return
        if others := [p.name for p in self.path.iterdir() if not p.name.startswith(".")]:
            raise OutputError(
                f"{self.path} holds other things ({', '.join(sorted(others)[:3])})",
                "choose an empty --output-dir",
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns an OSError into an OutputError that names the folder."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write to {self.path}: {error.strerror}", CHOOSE) from error


def gone(folder: Path) -> OutputError:
    """The error for a folder that was removed, moved or unmounted while a run was in it."""
    return OutputError(
        f"{folder} is gone: it was removed, moved or unmounted while the run was in it",
        "put it back to resume from its last checkpoint, or train again",
    )


@contextmanager
def refusals(folder: RunFolder, name: str, need: int) -> Iterator[None]:
    """Turns an error of writing, as on a full disk, into an OutputError with the numbers."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not (folder.path / own_files.RECORD).exists():
            raise gone(folder.path) from error
        reason = error.strerror if isinstance(error, OSError) else str(error)
        free = shutil.disk_usage(folder.path).free
        known = folder.checkpoints()
        after = f"the same command resumes from {known[-1].name}" if known else "nothing was saved"
        raise OutputError(
            f"cannot write {folder.path / name} ({reason}): it needs {format_bytes(need)}, and "
            f"{format_bytes(free)} are free",
            f"free some ({after})",
        ) from error
