"""The folder of a run: whose it is, whether it can be written, and what stands in it.

run.json          settings that make it this run, and whether it is finished
run.toml          all settings, for `chatlm train --config`; profile.toml, which it names
metrics.jsonl     one object per optimizer step
evaluations.jsonl one object per evaluation
checkpoint-N/     what a resume needs after step N
config.json, model.safetensors, tokenizer…    the final model
adapter/          LoRA's weights, as peft reads them
README.md         its card; loss.png and loss.svg the run's losses
tracking/         what TensorBoard or Weights & Biases was told
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import OutputError
from autotune.folders import check_writable, nearest
from autotune.quantity import format_bytes

OURS = ("run.json", "run.toml", "profile.toml", "metrics.jsonl", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "evaluations.jsonl", "README.md", "loss.png",
        "loss.svg")  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A place for one run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def tracking(self) -> Path:
        return self.path / "tracking"

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the oldest first."""
        found = [p for p in self.path.glob("checkpoint-*") if p.name[11:].isdigit()]
        return sorted(found, key=lambda p: int(p.name[11:]))

    def check(self, identity: dict[str, Any], *, fresh: bool) -> None:
        """What `claim` would refuse, refused before anything is started; writes nothing.

        Raises:
            OutputError: it holds another run, or this one, finished; or it cannot be written.
        """
        check_writable(self.path, "choose another --output-dir")
        if not self.path.exists():
            return
        self._check_ours()
        if fresh:
            return
        known = self._read()
        if known is None:
            return
        identity = json.loads(json.dumps(identity))  # as it is read back: a tuple is a list there
        if known["identity"] != identity and (self.checkpoints() or self.metrics.exists()):
            raise OutputError(
                f"{self.path} holds another run ({_difference(known['identity'], identity)}); use "
                f"--fresh to replace it, or another --output-dir"
            )
        if known["identity"] == identity and known["finished"]:
            raise OutputError(
                f"{self.path} holds this run, finished; use --fresh to train it again, or another "
                f"--output-dir"
            )

    def claim(self, identity: dict[str, Any], *, fresh: bool) -> None:
        """Makes the folder this run's; an unfinished part of the same run stays, to go on with.

        Raises:
            OutputError: as `check` does.
        """
        self.check(identity, fresh=fresh)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                self._clear()
            self._write({"identity": identity, "finished": False})
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.path}: {error.strerror}; choose another --output-dir"
            ) from error

    def check_space(self, need: int) -> None:
        """Raises OutputError when the disk has less than `need` bytes; the folder need not exist."""
        free = shutil.disk_usage(nearest(self.path)).free
        if free < need:
            raise OutputError(
                f"{self.path} has {format_bytes(free)} free, the run's checkpoints and model need "
                f"about {format_bytes(need)}; free some, or choose another --output-dir"
            )

    def finish(self) -> None:
        known = self._read()
        assert known is not None
        self._write({**known, "finished": True})

    def _check_ours(self) -> None:
        """Raises OutputError for what no run of ours left: `--fresh` must not remove it either."""
        if (self.path / "run.json").is_file():
            return
        if others := [p.name for p in self.path.iterdir() if not p.name.startswith(".")]:
            raise OutputError(
                f"{self.path} holds other things ({', '.join(sorted(others)[:3])}); "
                f"choose an empty --output-dir"
            )

    def _read(self) -> dict[str, Any] | None:
        file = self.path / "run.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:  # not JSON, or not text at all
            raise OutputError(
                f"{file} is damaged ({error}); use --fresh to start anew, or another --output-dir"
            ) from error
        if not isinstance(document, dict) or not {"identity", "finished"} <= set(document):
            raise OutputError(f"{file} is not a run of chatlm's; choose another --output-dir")
        return document

    def _write(self, document: dict[str, Any]) -> None:
        temporary = self.path / ".run.json"
        temporary.write_text(json.dumps(document, indent=1))
        temporary.replace(self.path / "run.json")

    def _clear(self) -> None:
        """Removes what a run of ours leaves, and nothing else."""
        for name in OURS:
            (self.path / name).unlink(missing_ok=True)
        checkpoints = [*self.checkpoints(), *self.path.glob(".checkpoint-*")]
        for folder in [*checkpoints, *self.path.glob("tracking")]:
            shutil.rmtree(folder)
        shutil.rmtree(self.path / "adapter", ignore_errors=True)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting that differs, as `name: old, now new`."""
    for key, value in new.items():
        if isinstance(value, dict) and old.get(key) != value:
            return _difference(old.get(key, {}), value)
        if old.get(key) != value:
            return f"{key.replace('_', ' ')} {old.get(key)}, now {value}"
    return "other settings"
