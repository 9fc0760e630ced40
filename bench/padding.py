"""What cutting by length saves: our trainer with three cuts of the same steps, in turns.

    python -m bench.padding --result bench/results/padding-cpu.json --data FILE

`plain` are micro-batches of one size in random order, as nearly every trainer has them; `exact` cuts
the same steps by length; `grouped` makes steps of like length too. Real tokens are those that are not
padding.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import trainers
from bench.commands import write_result
from bench.paired import words
from bench.trainer_runs import WAYS, Ran, run_ours
from bench.trainer_tasks import DEFAULTS, add_arguments, facts, make_task

LEAST = {"exact": 0.58, "grouped": 0.78}
"""Share of the padded tokens that is real, as promised for the 3,000 real rows at effective batch 240."""
NAMES = {
    "plain": "fixed size, random order",
    "exact": "by length within a step",
    "grouped": "`--length-grouping`",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    options = parser.parse_args()
    model = options.model or DEFAULTS[options.device].model
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(options, model, Path(folder))
        rounds: list[dict[str, Ran]] = []
        for seed in range(options.rounds):  # another order: no cut has always the same steps first
            rounds.append({way: run_ours(replace(task, seed=seed), way) for way in WAYS})
            document = {"model": model, **facts(options, task), **compare(rounds)}
            write_result(options.result, document)
    print(table(document))


def compare(rounds: list[dict[str, Ran]]) -> dict[str, Any]:
    """As `trainers.compare` with our own plain cut as the peer, and the promises on padding."""
    document = trainers.compare(rounds, "plain")
    for found in document["trainers"]:
        least = LEAST.get(found["name"])
        if least is None:
            found.update(promised_ratio=None, holds=None)
        else:
            padding_holds = found["padding_efficiency"] >= least
            found.update(promised_padding=least, holds=found["holds"] and padding_holds)
    return document


def table(document: Mapping[str, Any]) -> str:
    """Markdown for the docs, one row a cut."""
    lines = [
        "| cut | padding efficiency | real tokens/s | against random | micro-batches a step | peak |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {NAMES[found['name']]} | {found['padding_efficiency']:.2f} "
        f"| {found['real_tokens_per_second']:,.0f} | {words(trainers.ratio(found))} "
        f"| {found['micro_batches']:.0f} | {found['peak_bytes'] / 2**30:.2f} GiB |"
        for found in document["trainers"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
