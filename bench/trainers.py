"""Our trainer beside transformers' Seq2SeqTrainer and TRL's SFTTrainer: one task, in turns.

    python -m bench.trainers --result bench/results/trainers-cpu.json --data FILE

All get the same weights, rows, effective and micro-batch, precision, optimizer and loader processes, and
a fresh process for each run. The peer and our ways to cut take turns, round after round, so that what
else the machine does meets all; a ratio is between two runs of one round, and the median over the rounds
counts. `plain` is our trainer with the peer's cut, `exact` cuts by length within a step, `grouped` makes
steps of like length too.
"""

import argparse
import importlib.metadata
import importlib.util
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.commands import write_result
from bench.paired import Ratio, paired, words
from bench.trainer_runs import WAYS, Ran, Task, figures, last_loss, run_ours, run_peer
from bench.trainer_tasks import DEFAULTS, add_arguments, facts, make_task

PEERS = {"seq2seq": "transformers, Seq2SeqTrainer", "sft": "TRL, SFTTrainer"}
MODULES = {"seq2seq": "transformers", "sft": "trl"}
NAMES = {
    "plain": "ours, cut as theirs",
    "exact": "ours, cut by length",
    "grouped": "ours, `--length-grouping`",
}
LEAST = {"plain": 0.98, "exact": 1.25, "grouped": 1.6}
"""Real tokens/s of each of ours against the peer's that are promised."""
MEDIANS = (
    "real_tokens_per_second", "padding_efficiency", "micro_batches", "peak_bytes", "host_bytes",
    "last_loss", "steps_to_loss", "seconds_to_loss",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--causal-model", help="of SFTTrainer; llama-tiny, on a card llama-0.1b")
    parser.add_argument("--peers", nargs="+", choices=tuple(PEERS), default=tuple(PEERS))
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    options = parser.parse_args()
    default = DEFAULTS[options.device]
    models = {
        "seq2seq": options.model or default.model,
        "sft": options.causal_model or default.causal_model,
    }
    document: dict[str, Any] = {"versions": versions(), "comparisons": []}
    for peer in options.peers:
        if importlib.util.find_spec(MODULES[peer]) is None:
            print(f"{MODULES[peer]} is not installed: pip install --group peers")
            continue
        with tempfile.TemporaryDirectory() as folder:
            task = make_task(options, models[peer], Path(folder))
            said = {"peer": peer, "model": models[peer], **facts(options, task)}
            rounds: list[dict[str, Ran]] = []
            document["comparisons"].append({})
            for seed in range(
                options.rounds
            ):  # another order: no cut has always the same steps first
                rounds.append(one_round(replace(task, seed=seed), peer, options.ways))
                document["comparisons"][-1] = {**said, **compare(rounds, peer)}
                write_result(options.result, document)  # each round's, in case that it is cut
    print(table(document))


def one_round(task: Task, peer: str, ways: Sequence[str]) -> dict[str, Ran]:
    """The peer, and ours in each way, one after another."""
    return {peer: run_peer(task, peer), **{way: run_ours(task, way) for way in ways}}


def compare(rounds: Sequence[Mapping[str, Ran]], base: str) -> dict[str, Any]:
    """What each came to: medians over the rounds, and the ratios to `base` within a round."""
    names = list(rounds[0])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for ran in rounds:
        if ran[base].error:
            continue
        target = last_loss(ran[base].steps)
        for name in names:
            if not ran[name].error:
                found[name].append(figures(ran[name], target))
                found[name][-1]["speed_ratio"] = (
                    found[name][-1]["real_tokens_per_second"]
                    / found[base][-1]["real_tokens_per_second"]
                )
    errors = [ran[name].error for ran in rounds for name in names if ran[name].error]
    rows = [row(name, found[name], found[base]) for name in names if found[name]]
    return {"rounds": len(rounds), "errors": errors, "trainers": rows}


def row(
    name: str, runs: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Medians of one trainer, its ratios to the peer, and whether the promise is held."""
    medians = {key: median([run[key] for run in runs]) for key in MEDIANS}
    ratio = median([run["speed_ratio"] for run in runs])
    peaks = median([run["peak_bytes"] for run in theirs])
    least = LEAST.get(name)
    return {
        "name": name,
        **medians,
        "speed_ratio": ratio,
        "peak_ratio": medians["peak_bytes"] / peaks,
        "promised_ratio": least,
        "holds": None if least is None else ratio >= least,
        "runs": list(runs),
    }


def median(values: Sequence[Any]) -> Any:
    """Of those that are known; None where none is, or where most runs had none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if 2 * len(known) > len(values) else None


def ratio(found: Mapping[str, Any]) -> Ratio:
    """A trainer's speed to the peer's, round by round."""
    return paired([run["speed_ratio"] for run in found["runs"]], [1.0] * len(found["runs"]))


def versions() -> dict[str, str]:
    """Of the libraries whose trainers run here."""
    names = ("transformers", "accelerate", "trl", "datasets")
    installed = [name for name in names if importlib.util.find_spec(name)]
    return {name: importlib.metadata.version(name) for name in installed}


def table(document: Mapping[str, Any]) -> str:
    """Markdown for the docs, one row a trainer."""
    lines = [
        "| trainer | real tokens/s | against theirs | padding efficiency | micro-batches a step "
        "| peak | host memory | to their last loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for comparison in document["comparisons"]:
        lines += [_line(comparison, found) for found in comparison["trainers"]]
    return "\n".join(lines)


def _line(comparison: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    name = PEERS.get(found["name"]) or NAMES[found["name"]]
    reached = (
        "not in these steps"
        if found["seconds_to_loss"] is None
        else f"{found['seconds_to_loss']:.0f} s, {found['steps_to_loss']:.0f} steps"
    )
    cells = [
        f"`{comparison['model']}`: {name}",
        f"{found['real_tokens_per_second']:,.0f}",
        words(ratio(found)),
        f"{found['padding_efficiency']:.2f}",
        f"{found['micro_batches']:.0f}",
        f"{found['peak_bytes'] / 2**30:.2f} GiB",
        f"{found['host_bytes'] / 2**30:.2f} GiB",
        reached,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
