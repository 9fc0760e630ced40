"""Profiles and run files: the store, the schema, what follows from a profile, and the commands that print one."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import profiles
from bench.fuzz.case import Case, Make, Place, Reader
from bench.fuzz.mutations import (
    FILE_NAMES,
    TEXTS,
    as_toml,
    damage_bytes,
    damage_document,
    damage_place,
)
from profiles.store import PRESETS, check_name, check_place, free_path
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve
from trainer.config.run_config import load_run

PROFILE: dict[str, Any] = {
    "schema": 1, "interrupted": False,
    "batch": {
        "micro_batch_size": 8, "micro_batch_sizes": [8, 4], "gradient_accumulation_steps": 3,
        "effective_batch_size": 36, "base_effective_batch_size": 32, "eval_batch_size": 16,
    },
    "memory": {
        "target_vram": 0.6, "target_ram": 0.8, "vram_limit_bytes": 2**34, "others_bytes": 0, "budget_bytes": 2**33,
        "hard_limit_bytes": 2**33 + 2**20, "peak_bytes": 2**32, "host_peak_bytes": 2**31, "shares": [0.4, 0.6],
    },
    "run": {
        "model": "chatlm-tiny", "data": ["rows.jsonl"], "prompt_column": "prompt", "response_column": "response",
        "precision": "fp32", "gradient_checkpointing": False, "compile": False, "fsdp": False, "lora_rank": 8,
        "lora_alpha": 16.0, "lora_targets": ["q", "v"], "neftune_alpha": 5.0, "loss": "chunked", "max_source_length": 64,
        "max_target_length": 64, "optimizer": "adamw", "loader_workers": 2, "environment": {"TERM": "dumb"},
    },
    "fingerprint": {
        "model": "chatlm-tiny 0123", "devices": ["a", "b"], "device_bytes": [2**34, 2**33], "driver": "1", "torch": "2",
        "longest_source": 60, "longest_target": 50, "world_size": 2,
    },
    "trial": [
        {
            "size": size, "sizes": [size, size // 2], "verdict": verdict, "peak_bytes": size << 20, "seconds": 1.5,
            "samples_per_second": speed, "tokens_per_second": 900.0, "speed_spread": 0.01, "reason": "x",
        }
        for size, verdict, speed in ((2, "fits", 10.0), (8, "fits", 20.0), (16, "over", 21.0), (32, "oom", 0.5))
    ],
}  # fmt: skip
"""One with every key."""
RUN: dict[str, Any] = {
    **{name: value for name, value in asdict(TrainOptions()).items() if name not in ("fresh", "trust_remote_code")},
    "model": "chatlm-tiny", "data": ["rows.jsonl"], "eval_data": ["rows.jsonl"], "prompt_column": "prompt",
    "response_column": "response", "optimizer": "adamw", "gradient_checkpointing": False, "freeze": "none",
    "loss": "logits", "lora_rank": 0, "compile": False, "fsdp": False, "backend": "gloo", "device": "cpu", "num_processes": 1,
    "profile": "tuned.toml", "micro_batch": 4, "dropout": 0.1, "output_dir": "run", "learning_rate": 1e-3,
    "max_steps": 10, "eval_every": 5, "patience": 2, "max_new_tokens": 8, "checkpoint_every": 5,
}  # fmt: skip
"""One with nearly every key."""
DEVICES = (1, 2, 3, 16, 1000)


def prepare(folder: Path) -> Make:
    """The presets and a tuned profile, and a run file."""
    presets = sorted(preset.read_bytes() for preset in PRESETS.iterdir())
    originals = [as_toml(PROFILE), *presets]
    return lambda place, draw: _make(place, draw, originals)


def _make(place: Place, draw: Random, originals: list[bytes]) -> Case:
    folder = place.work / "profiles"
    folder.mkdir()
    (place.work / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    name = draw.choice(FILE_NAMES) if draw.random() < 0.1 else "tuned"
    (runs := place.work / "runs").mkdir()
    path, run = folder / f"{name}.toml", runs / "run.toml"
    path.write_bytes(draw.choice(originals))
    run.write_bytes(as_toml(RUN))
    is_run = draw.random() < 0.3
    _damage(run if is_run else path, RUN if is_run else PROFILE, draw, originals, place.outside)
    of_run, *others = readers(draw, str(path), name, run)
    return Case([of_run, *others] if is_run else others, kept=[place.work])


def _damage(path: Path, document: Any, draw: Random, others: list[bytes], outside: Path) -> None:
    match draw.randrange(20):
        case 0:
            damage_place(draw.choice((path, path, path.parent)), draw, outside)
        case 1 | 2 | 3 | 4 | 5:
            path.write_bytes(damage_bytes(path.read_bytes(), draw, others))
        case 6 | 7 if document is PROFILE:
            path.write_bytes(as_toml(_cut_hugely(draw)))
        case _:
            path.write_bytes(as_toml(damage_document(document, draw)))


def _cut_hugely(draw: Random) -> dict[str, Any]:
    """A profile whose plan adds up, with numbers that no machine has."""
    size, steps, devices = (draw.choice((1, 2, 7, 10**6, 10**9, 2**62, 10**400)) for _ in range(3))
    batch = {"micro_batch_size": size, "gradient_accumulation_steps": steps}
    batch["effective_batch_size"] = size * steps * devices
    fingerprint = {**PROFILE["fingerprint"], "world_size": devices}
    document = {**PROFILE, "batch": batch, "fingerprint": fingerprint}
    return document if draw.random() < 0.5 else damage_document(document, draw)


def readers(draw: Random, path: str, name: str, run: Path) -> list[Reader]:
    devices, size = draw.choice(DEVICES), draw.choice((1, 2, 7, 64, 10**6))
    anything = draw.choice(TEXTS) if draw.random() < 0.1 else "fast"

    def with_profile(use: Callable[[profiles.Profile], object]) -> Reader:
        return lambda: use(profiles.load(path))

    def as_run() -> None:
        options = TrainOptions(**load_run(run))
        resolve(profiles.load("fast"), options, device="cpu", world_size=devices)

    def resolved(profile: profiles.Profile) -> object:
        options = TrainOptions(profile=path, scale_lr=draw.choice((None, "linear", "sqrt")))
        return resolve(profile, options, device="cpu", world_size=profile.fingerprint.world_size)

    return [
        as_run,
        lambda: profiles.load(path),
        lambda: profiles.names(),
        lambda: profiles.load(name),
        lambda: profiles.load(anything),
        lambda: free_path(Path(path)),
        lambda: check_place(Path(path)),
        lambda: bool(check_name(anything)),
        with_profile(lambda profile: profile.plan(devices)),
        with_profile(lambda profile: profile.plan(devices, size).accumulation),
        with_profile(lambda profile: str(profile.plan(profile.fingerprint.world_size))),
        with_profile(profiles.Profile.knee),
        with_profile(profiles.Profile.overhead),
        with_profile(resolved),
        lambda: printed("list"),
        lambda: printed("show", path),
    ]


def printed(*words: str) -> str:
    """What `chatlm profiles` prints with these words."""
    import cli

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        cli.list_profiles() if words == ("list",) else cli.show_profile(words[1])
    return shown.getvalue()
