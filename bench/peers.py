"""Ours beside the tuners that others offer: one workload, one emulated card, one run.

Every tuner runs the trainer's own step in a fresh process under the same limit, which makes an
allocation fail as it would on a card that is full. Peers know no target: they fill the card, so ours is
asked for the whole card too. What the answers are held against is a sweep over sizes (`oracle`).
With `--device cuda` a real card plays the smaller one; its context counts for ours alone.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import profiles
from autotune.units import parse_bytes
from autotune.workers.launch import worker_environment
from bench.commands import CHATLM, write_result
from trainer.config.resolve import apply_profile
from trainer.config.settings import WorkloadSettings
from trainer.supervisor.tuning import MAX_MICRO_BATCH

ROOT = Path(__file__).parent.parent
PEERS = {
    "accelerate": "accelerate, `find_executable_batch_size`",
    "power": "Lightning, `scale_batch_size`, power",
    "binsearch": "Lightning, `scale_batch_size`, binsearch",
    "bisection": "doubling, then bisection",
}
TOKENIZER = ROOT / "trainer" / "assets" / "tokenizer"
STRIDE = 8
"""Sizes apart in the oracle's first sweep."""
BEYOND = 4
"""How far past the first size that does not fit the oracle tries every single one."""
PATIENCE = 900
"""Seconds after which a tuner counts as hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One size that a tuner tried."""

    size: int
    outcome: str
    """`ran`, `oom`, `failed` where memory is not the reason, or by our own word `over`."""
    peak_bytes: int | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What became of one tuner; `seconds` of its whole process, imports included."""

    tries: tuple[Try, ...]
    answer: int | None
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The workload, the card and the ceiling that all tuners share."""

    settings: WorkloadSettings
    effective: int
    card: int
    ceiling: int
    folder: Path

    def environment(self) -> dict[str, str]:
        """As our workers have it; the token store is kept apart from the user's."""
        own = {"PYTHONPATH": str(ROOT), "CHATLM_CACHE": str(self.folder / "cache")}
        return {**worker_environment(self.settings.device, 1), **own}

    def fits(self, tried: Try) -> bool:
        """Whether the try ran within the card."""
        return tried.outcome == "ran" and (tried.peak_bytes or 0) <= self.card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the bundled rows without it")
    parser.add_argument("--model", help="a T5 of 8 M parameters without it, made here")
    parser.add_argument("--max-length", type=int, default=256, help="of sources and of targets")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--card", type=parse_bytes, default="2GiB")
    parser.add_argument("--ceiling", type=int, default=MAX_MICRO_BATCH)
    options = parser.parse_args()
    preset = profiles.load("fast")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_model(Path(folder) / "t5-8m")
        settings = replace(
            apply_profile(
                WorkloadSettings(
                    model=model,
                    data=(str(options.data.resolve()),) if options.data else (),
                    device=options.device,
                    memory_limit=options.card,
                ),
                preset,
            ),
            max_source_length=options.max_length,
            max_target_length=options.max_length,
        )
        task = Task(
            settings=settings,
            effective=preset.batch.effective_batch_size,
            card=options.card,
            ceiling=options.ceiling,
            folder=Path(folder),
        )
        document = {"model": options.model or "t5-8m", **compare(task)}
    rows = options.data.name if options.data else "bundled"
    write_result(options.result, {"rows": rows, **document})
    print(table(document))
    for tuner in document["tuners"]:
        if tuner["error"]:
            print(f"{tuner['name']} failed: {tuner['error']}")


def make_model(folder: Path) -> str:
    """A T5 of d_model 256, four layers a side, random weights: steps are long beside the start-up."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = T5Config(
        vocab_size=len(tokenizer), d_model=256, d_ff=1024, d_kv=64, num_heads=4, num_layers=4,
        num_decoder_layers=4, dropout_rate=0.0, pad_token_id=pad, eos_token_id=end,
    )  # fmt: skip
    config.decoder_start_token_id = pad
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def compare(task: Task) -> dict[str, Any]:
    """Everything that was run, and the columns that follow from it."""
    oracle = find_oracle(task)  # first: it tokenises the data, which the others then find done
    found = {name: run_peer(task, name) for name in PEERS}
    found["ours"] = run_ours(task)
    runnable = {ran.answer for ran in found.values() if ran.answer and holds(task, ran, oracle)}
    sizes = sorted({oracle.size, *runnable}, reverse=True)
    lines, _, speed_error = run_process(task, "speed", "--sizes", *map(str, sizes))
    speeds = {line["size"]: line["samples_per_second"] for line in lines}
    return {
        "max_length": task.settings.max_source_length,
        "card_bytes": task.card,
        "ceiling": task.ceiling,
        "versions": {name: version(name) for name in ("accelerate", "lightning")},
        "oracle": {**asdict(oracle), "samples_per_second": speeds.get(oracle.size)},
        "speed_error": speed_error,
        "tuners": [row(task, name, found[name], oracle, speeds) for name in ("ours", *PEERS)],
    }


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """The largest size that fits, and every size that was tried to say so."""

    size: int
    seconds: float
    coarse: tuple[Try, ...]
    """Every 8th size, in one process, until 8 in a row were out of memory."""
    fine: tuple[Try, ...]
    """Every size about the place where the coarse sweep stopped fitting; on the CPU, where memory is
    not given back to the last page, each in a fresh process."""


def find_oracle(task: Task) -> Oracle:
    """Sweeps: memory grows with the size but for noise, so that only the boundary needs every size.

    Raises:
        RuntimeError: not one size fits, so that there is nothing to compare.
    """
    started = time.monotonic()
    sizes = range(STRIDE, task.ceiling + 1, STRIDE)
    lines, _, _ = run_process(task, "sweep", "--sizes", *map(str, sizes))
    coarse = tuple(as_try(line) for line in lines)
    low = max((tried.size for tried in coarse if task.fits(tried)), default=1)
    high = min((tried.size for tried in coarse if not task.fits(tried)), default=task.ceiling)
    about = range(min(low, high), min(max(low, high) + BEYOND, task.ceiling) + 1)
    fine = []
    for group in [[size] for size in about] if task.settings.device == "cpu" else [about]:
        lines, _, _ = run_process(task, "sweep", "--sizes", *map(str, group))
        fine += [as_try(line) for line in lines]
    fitting = [tried.size for tried in fine if task.fits(tried)]
    if not fitting:
        raise RuntimeError(f"no size of {[tried.size for tried in fine]} fits the card")
    return Oracle(
        size=max(fitting),
        seconds=time.monotonic() - started,
        coarse=coarse,
        fine=tuple(fine),
    )


def run_peer(task: Task, name: str) -> Ran:
    """One peer in a process of its own."""
    lines, seconds, error = run_process(task, name, "--ceiling", str(task.ceiling))
    answers = [line["answer"] for line in lines if "answer" in line]
    return Ran(
        tries=tuple(as_try(line) for line in lines if "outcome" in line),
        answer=answers[0] if answers else None,
        seconds=seconds,
        error=error,
    )


def as_try(line: dict[str, Any]) -> Try:
    return Try(**line)


def run_process(task: Task, *arguments: str) -> tuple[list[dict[str, Any]], float, str | None]:
    """The lines that `bench.peer` wrote, its seconds, and its last words if it failed."""
    print(f"\n$ bench.peer {' '.join(arguments)}"[:100], flush=True)
    extra = {"effective": task.effective, "effective_fixed": False}
    settings = json.dumps({**task.settings.as_json(), **extra})
    out = task.folder / "lines.jsonl"
    out.unlink(missing_ok=True)
    words = [*arguments, "--settings", settings, "--out", str(out)]
    seconds, _, error = timed(task, [sys.executable, "-P", "-m", "bench.peer", *words])
    text = out.read_text() if out.exists() else ""
    return [json.loads(line) for line in text.splitlines()], seconds, error


def timed(task: Task, command: list[str]) -> tuple[float, str, str | None]:
    """The command's seconds, its output, and its last words if it failed."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=task.folder,
            env=task.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return time.monotonic() - started, "", f"did not end within {PATIENCE} s"
    seconds = time.monotonic() - started
    words = done.stderr.strip().splitlines() or ["no word"]
    error = None if done.returncode == 0 else f"exit code {done.returncode}: {words[-1][:300]}"
    return seconds, done.stdout, error


def run_ours(task: Task) -> Ran:
    """`chatlm autotune`, asked for the whole card."""
    settings = task.settings
    arguments = [
        "autotune", "--target-vram", "1.0", "--vram-limit", str(task.card),
        "--max-batch", str(task.ceiling), "--device", settings.device, "--num-processes", "1",
        "--model", settings.model, "--base", "fast", "--name", "peers", "--json",
        "--max-source-length", str(settings.max_source_length),
        "--max-target-length", str(settings.max_target_length),
        *(word for file in settings.data for word in ("--data", file)),
    ]  # fmt: skip
    print(f"\n$ chatlm {' '.join(arguments)}", flush=True)
    seconds, out, error = timed(task, [*CHATLM, *arguments])
    document = json.loads(out) if error is None else {"trials": [], "micro_batch_size": None}
    return Ran(
        tries=tuple(
            Try(
                size=trial["size"],
                outcome={"fits": "ran"}.get(trial["verdict"], trial["verdict"]),
                peak_bytes=trial["peak_bytes"],
                seconds=trial["seconds"],
                error=trial.get("reason"),
            )
            for trial in document["trials"]
        ),
        answer=document["micro_batch_size"],
        seconds=seconds,
        error=error,
    )


def holds(task: Task, ran: Ran, oracle: Oracle) -> bool:
    """Whether the answer runs on the card: no larger than the oracle's, or run by the tuner."""
    return ran.answer is not None and (0 < ran.answer <= oracle.size or was_run(ran))


def was_run(ran: Ran) -> bool:
    """Whether the answer is a size that the tuner ran to the end."""
    return any(tried.size == ran.answer and tried.outcome == "ran" for tried in ran.tries)


def row(
    task: Task, name: str, ran: Ran, oracle: Oracle, speeds: dict[int, float]
) -> dict[str, Any]:
    """One tuner's columns; None where there is nothing to say."""
    speed = speeds.get(ran.answer) if ran.answer and holds(task, ran, oracle) else None
    best = speeds.get(oracle.size)
    return {
        "name": name,
        "error": ran.error,
        "probes": len(ran.tries),
        "over_budget": sum(
            tried.outcome == "over" or (tried.outcome == "ran" and not task.fits(tried))
            for tried in ran.tries
        ),
        "out_of_memory": sum(tried.outcome == "oom" for tried in ran.tries),
        "seconds": ran.seconds,
        "answer": ran.answer,
        "answer_to_oracle": None if ran.answer is None else ran.answer / oracle.size,
        "answer_was_run": None if ran.answer is None else was_run(ran),
        "samples_per_second": speed,
        "speed_to_oracle": speed / best if speed and best else None,
        "tries": [asdict(tried) for tried in ran.tries],
    }


def table(document: dict[str, Any]) -> str:
    """Markdown for the README, one row a tuner."""
    lines = [
        "| tuner | probes | over budget | out of memory | seconds | answer | of the oracle's size "
        "| was it run | of the oracle's speed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = {"ours": "`chatlm autotune`", **PEERS}
    for tuner in document["tuners"]:
        cells = [names[tuner["name"]], f"{tuner['probes']}", f"{tuner['over_budget']}"]
        cells += [f"{tuner['out_of_memory']}", f"{tuner['seconds']:.0f}"]
        if tuner["answer"] is None:
            cells += ["failed", "–", "–", "–"]
        else:
            ran = "yes" if tuner["answer_was_run"] else "no"
            cells += [f"{tuner['answer']}", f"{tuner['answer_to_oracle']:.0%}", ran]
            cells.append(speed_cell(tuner, document["speed_error"]))
        lines.append(f"| {' | '.join(cells)} |")
    oracle = document["oracle"]
    tried = len(oracle["coarse"]) + len(oracle["fine"])
    lines.append(
        f"| oracle, a sweep | {tried} | – | – | {oracle['seconds']:.0f} | {oracle['size']} | 100% | yes "
        f"| 100% |"
    )
    return "\n".join(lines)


def speed_cell(tuner: dict[str, Any], speed_error: str | None) -> str:
    """Against the oracle's; without a figure, why."""
    if tuner["speed_to_oracle"] is not None:
        return f"{tuner['speed_to_oracle']:.0%}"
    return "not measured" if speed_error else "does not run"


if __name__ == "__main__":
    main()
