"""Ours beside the tuners that others offer: one workload, one emulated card, in turns.

Every tuner runs the trainer's own step in a fresh process under the same limit, which makes an
allocation fail as it would on a card that is full. Peers know no target: they fill the card, so ours is
asked for the whole card too. The tuners take turns, round after round; a ratio of times is between two
runs of one round. The answers are held against every size about the place where their tries stopped
fitting (`oracle`).
With `--device cuda` a real card plays the smaller one; its context counts for ours alone.
"""

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import profiles
from autotune.units import parse_bytes
from autotune.workers.launch import worker_environment
from bench.commands import CHATLM, write_result
from bench.paired import paired, words
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
BEYOND = 4
"""Sizes in a row that do not fit, after which the oracle tries no larger one."""
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
    parser.add_argument("--rounds", type=int, default=2)
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
        document = {"model": options.model or "t5-8m", **compare(task, options.rounds)}
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


def compare(task: Task, rounds: int) -> dict[str, Any]:
    """Everything that was run, and the columns that follow from it."""
    run_process(task, "sweep", "--sizes", "1")  # it tokenises the data, which the others find done
    runners: dict[str, Callable[[Task], Ran]] = {"ours": run_ours}
    runners |= {name: partial(run_peer, name=name) for name in PEERS}
    found: dict[str, list[Ran]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            found[name].append(runner(task))
    every = [ran for runs in found.values() for ran in runs]
    oracle = find_oracle(task, [tried for ran in every for tried in ran.tries])
    runnable = {ran.answer for ran in every if ran.answer and holds(task, ran, oracle)}
    sizes = sorted({oracle.size, *runnable}, reverse=True)
    lines, _, speed_error = run_process(task, "speed", "--sizes", *map(str, sizes))
    speeds = {line["size"]: line["all"] for line in lines}
    return {
        "max_length": task.settings.max_source_length,
        "card_bytes": task.card,
        "ceiling": task.ceiling,
        "rounds": rounds,
        "versions": {name: version(name) for name in ("accelerate", "lightning")},
        "oracle": asdict(oracle),
        "speed_error": speed_error,
        "tuners": [
            row(task, name, runs, found["ours"], oracle, speeds) for name, runs in found.items()
        ],
    }


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """The largest size that fits, and every size that was tried to say so, each in a fresh process."""

    size: int
    seconds: float
    tries: tuple[Try, ...]


def find_oracle(task: Task, known: Sequence[Try]) -> Oracle:
    """Tries every size about the largest one that a tuner ran within the card.

    From it upwards, until several in a row do not fit; downwards only where none has fitted so far.

    Raises:
        RuntimeError: not one size fits, so that there is nothing to compare.
    """
    started = time.monotonic()
    first = max((tried.size for tried in known if task.fits(tried)), default=1)
    tries: list[Try] = []

    def fits(size: int) -> bool:
        lines, _, error = run_process(task, "sweep", "--sizes", str(size))
        tries.extend(as_try(line) for line in lines)
        return bool(lines) and error is None and task.fits(tries[-1])

    missed = 0
    for size in range(first, task.ceiling + 1):
        missed = 0 if fits(size) else missed + 1
        if missed == BEYOND:
            break
    fitting = [tried.size for tried in tries if task.fits(tried)]
    if not fitting:
        fitting = [next((size for size in range(first - 1, 0, -1) if fits(size)), 0)]
    if not max(fitting):
        raise RuntimeError(f"no size of {[tried.size for tried in tries]} fits the card")
    return Oracle(size=max(fitting), seconds=time.monotonic() - started, tries=tuple(tries))


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
    command = [sys.executable, "-P", "-m", "bench.peer", *arguments]
    seconds, _, error = timed(task, [*command, "--settings", settings, "--out", str(out)])
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
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    error = None if done.returncode == 0 else f"exit code {done.returncode}: {last[:300]}"
    return seconds, done.stdout, error


def run_ours(task: Task) -> Ran:
    """`chatlm autotune`, asked for the whole card."""
    settings = task.settings
    arguments = [
        "autotune", "--target-vram", "1.0", "--vram-limit", str(task.card),
        "--max-batch", str(task.ceiling), "--device", settings.device, "--num-processes", "1",
        "--model", settings.model, "--base", "fast", "--json", "--name", f"peers-{time.monotonic_ns()}",
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
    task: Task,
    name: str,
    runs: Sequence[Ran],
    ours: Sequence[Ran],
    oracle: Oracle,
    speeds: Mapping[int, Sequence[float]],
) -> dict[str, Any]:
    """One tuner's columns, of the first round but for the times; None where there is nothing to say.

    `speeds` are those of each size, turn by turn.
    """
    ran = runs[0]
    is_timed = ran.answer is not None and ran.answer in speeds and holds(task, ran, oracle)
    speed = speeds[ran.answer] if ran.answer is not None and is_timed else None
    best = speeds.get(oracle.size)
    return {
        "name": name,
        "error": next((each.error for each in runs if each.error), None),
        "probes": len(ran.tries),
        "over_budget": sum(
            tried.outcome == "over" or (tried.outcome == "ran" and not task.fits(tried))
            for tried in ran.tries
        ),
        "out_of_memory": sum(tried.outcome == "oom" for tried in ran.tries),
        "seconds": statistics.median(each.seconds for each in runs),
        "time_ratio": paired([each.seconds for each in ours], [each.seconds for each in runs]),
        "answer": ran.answer,
        "answers": [each.answer for each in runs],
        "answer_to_oracle": None if ran.answer is None else ran.answer / oracle.size,
        "answer_was_run": None if ran.answer is None else was_run(ran),
        "samples_per_second": statistics.median(speed) if speed else None,
        "speed_to_oracle": paired(speed, best) if speed and best else None,
        "tries": [[asdict(tried) for tried in each.tries] for each in runs],
    }


def table(document: dict[str, Any]) -> str:
    """Markdown for the README, one row a tuner."""
    lines = [
        "| tuner | probes | over budget | out of memory | seconds | our time to its | answer "
        "| of the oracle's size | was it run | of the oracle's speed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = {"ours": "`chatlm autotune`", **PEERS}
    for tuner in document["tuners"]:
        cells = [names[tuner["name"]], f"{tuner['probes']}", f"{tuner['over_budget']}"]
        cells += [f"{tuner['out_of_memory']}", f"{tuner['seconds']:.0f}", ratio_cell(tuner)]
        if tuner["answer"] is None:
            cells += ["failed", "–", "–", "–"]
        else:
            ran = "yes" if tuner["answer_was_run"] else "no"
            cells += [f"{tuner['answer']}", f"{tuner['answer_to_oracle']:.0%}", ran]
            cells.append(speed_cell(tuner, document["speed_error"]))
        lines.append(f"| {' | '.join(cells)} |")
    oracle = document["oracle"]
    lines.append(
        f"| oracle, every size about the answers | {len(oracle['tries'])} | – | – "
        f"| {oracle['seconds']:.0f} | – | {oracle['size']} | 100% | yes | 100% |"
    )
    return "\n".join(lines)


def ratio_cell(tuner: dict[str, Any]) -> str:
    """Nothing for ours, and where it failed."""
    known = tuner["name"] != "ours" and tuner["error"] is None
    return words(tuner["time_ratio"]) if known else "–"


def speed_cell(tuner: dict[str, Any], speed_error: str | None) -> str:
    """Against the oracle's; without a figure, why."""
    if tuner["speed_to_oracle"] is not None:
        return f"{tuner['speed_to_oracle']['median']:.0%}"
    return "not measured" if speed_error else "does not run"


if __name__ == "__main__":
    main()
