"""Everything that only a card can show, in one run that ends in time: `make bench-gpu`.

    python -m bench.gpu --result bench/results/gpu.json --data FILE

Tunes the card and an emulated smaller one, trains the presets' and the tuned micro-batches at one
effective batch, and holds the device peak of every step of a longer run against the probe's. What is
done is written down after each part; a part that fails is recorded with its error, and the next one runs.
`--device cpu` tries the same on a machine without a card, where only the emulated one is tuned.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import profiles
from bench.commands import metrics, speed, write_result
from bench.repeat import ROOT, timed

PRESETS = ("small", "fast", "standard")
EFFECTIVE = "standard"
"""The preset whose effective batch, 240, all micro-batches of the table are cut from."""
LEAST = 30.0
"""Seconds without which a part is not begun."""

Part = Callable[[], dict[str, Any]]


class Skipped(Exception):
    """Why a part cannot run here."""


class Bench:
    """The document, written after each part, and the time that is left."""

    def __init__(self, path: Path, facts: dict[str, Any], seconds: float) -> None:
        self.document: dict[str, Any] = {**facts, "parts": {}}
        self._path = path
        self._ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def do(self, name: str, part: Part) -> dict[str, Any]:
        """Runs a part and writes down what became of it: `done`, `skipped` or `failed`, and why."""
        print(f"{name}, {self.left:.0f} s left", flush=True)
        started = time.monotonic()
        outcome: dict[str, Any]
        try:
            if self.left < LEAST:
                raise Skipped("no time is left")
            outcome = {"state": "done", **part()}
        except Skipped as why:
            outcome = {"state": "skipped", "why": str(why)}
        except Exception as error:  # noqa: BLE001  whatever it is, the other parts' figures count
            outcome = {"state": "failed", "why": f"{type(error).__name__}: {error}"}
        outcome["part_seconds"] = time.monotonic() - started
        self.document["parts"][name] = outcome
        write_result(self._path, self.document)
        print(f"  {outcome['state']} {outcome.get('why', '')}", flush=True)
        return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the bundled rows without it")
    parser.add_argument("--model", default="chatlm-0.2b")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--vram-limit", default="20GiB", help="the emulated card")
    parser.add_argument("--steps", type=int, default=200, help="of the longer run")
    parser.add_argument("--preset-steps", type=int, default=5, help="the first is not timed")
    parser.add_argument("--seconds", type=float, default=500, help="for everything")
    options = parser.parse_args()
    facts = {
        "machine": machine(),
        "device": options.device,
        "model": options.model,
        "rows": options.data.name if options.data else "bundled",
        "vram_limit": options.vram_limit,
    }
    bench = Bench(options.result, facts, options.seconds)
    common = ["--device", options.device, "--num-processes", "1", "--model", options.model]
    if options.data:
        common += ["--data", str(options.data.resolve())]
    with tempfile.TemporaryDirectory() as folder:
        run_all(bench, options, Path(folder), common)
    print(table(bench.document))
    if any(part["state"] == "failed" for part in bench.document["parts"].values()):
        sys.exit(1)


def run_all(bench: Bench, options: argparse.Namespace, folder: Path, common: Sequence[str]) -> None:
    """The parts, those first that later ones need."""

    def chatlm(*arguments: str) -> dict[str, Any]:
        return timed(folder, *arguments, *common, timeout=bench.left)[0]

    def tune(name: str, *card: str) -> dict[str, Any]:
        return {"tuning": chatlm("autotune", "--target-vram", "0.6", "--name", name, *card)}

    def tune_card() -> dict[str, Any]:
        if options.device == "cpu":
            raise Skipped("there is no card, and host memory is not filled for it")
        return tune("card")

    def train(profile: str, steps: int, *flags: str) -> list[dict[str, Any]]:
        run = f"run_{profile}_{'_'.join(flags)}"
        words = ["--max-steps", str(steps), "--checkpoint-every", str(steps), *flags]
        chatlm("train", "--profile", profile, *words, "--output-dir", run, "--fresh")
        return metrics(folder / run)

    def cut(name: str, size: int) -> dict[str, Any]:
        steps = train(EFFECTIVE, options.preset_steps, "--micro-batch", str(size))
        return {"cut": name, "micro_batch": size, **figures(steps)}

    def hold() -> dict[str, Any]:
        if not tuned:
            raise Skipped("nothing was tuned")
        profile, tuning = next(iter(tuned.items()))
        (device,) = tuning["devices"]
        steps = train(profile, options.steps)
        peaks = [step["device_peak_bytes"] for step in steps]
        held = against_probe(peaks, probe=device["peak_bytes"], budget=device["budget_bytes"])
        return {
            "profile": profile,
            "micro_batch": tuning["micro_batch_size"],
            **figures(steps),
        } | held

    bench.do("tune card", tune_card)
    bench.do("tune limit", lambda: tune("limit", "--vram-limit", options.vram_limit))
    tuned: dict[str, dict[str, Any]] = {
        name: part["tuning"]
        for name in ("card", "limit")
        if "tuning" in (part := bench.document["parts"][f"tune {name}"])
    }
    bench.do("hold", hold)
    most = profiles.load(EFFECTIVE).batch.effective_batch_size
    sizes = {name: tuning["micro_batch_size"] for name, tuning in tuned.items()}
    sizes |= {name: profiles.load(name).batch.micro_batch_size for name in PRESETS}
    for name, size in sizes.items():
        bench.do(f"cut {name}", partial(cut, name, min(size, most)))
    bench.do("peers", lambda: compare(options, folder, bench.left))


def compare(options: argparse.Namespace, folder: Path, seconds: float) -> dict[str, Any]:
    """The other tuners on this device, on the emulated card."""
    if importlib.util.find_spec("lightning") is None:
        raise Skipped("lightning is not installed: pip install --group peers")
    result = folder / "peers.json"
    words = [
        "--device",
        options.device,
        "--model",
        options.model,
        "--card",
        options.vram_limit,
        "--rounds",
        "1",
    ]
    words += ["--data", str(options.data.resolve())] if options.data else []
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers", "--result", str(result), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return {"comparison": json.loads(result.read_text())}


def machine() -> dict[str, Any]:
    """As `bench.commands` has it, from a process that ends: a CUDA context of this one would count
    as a tenant's memory."""
    code = "import json; from bench.commands import machine; print(json.dumps(machine()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figures(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed of the median step, the first one left out, and the peak of all of them."""
    return {
        "effective_batch": steps[0]["samples"],
        "steps": len(steps),
        "micro_batches": max(step["micro_batches"] for step in steps),
        "samples_per_second": speed(steps),
        "tokens_per_second": statistics.median(step["tokens_per_second"] for step in steps[1:]),
        "peak_bytes": max(step["device_peak_bytes"] for step in steps),
    }


def against_probe(peaks: Sequence[int], *, probe: int, budget: int) -> dict[str, Any]:
    """The peak of every step beside what the probe said and the budget allows."""
    return {
        "probe_peak_bytes": probe,
        "budget_bytes": budget,
        "highest_peak_to_probe": max(peaks) / probe,
        "highest_peak_to_budget": max(peaks) / budget,
        "steps_over_budget": sum(peak > budget for peak in peaks),
        "step_peak_bytes": list(peaks),
    }


def table(document: dict[str, Any]) -> str:
    """Markdown, one row a micro-batch that was timed."""
    lines = ["| micro-batch | samples/s | real tokens/s | peak |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {part['cut']}: {part['micro_batch']} "
        f"| {part['samples_per_second']:.0f} | {part['tokens_per_second']:,.0f} "
        f"| {part['peak_bytes'] / 2**30:.2f} GiB |"
        for part in document["parts"].values()
        if "cut" in part
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
