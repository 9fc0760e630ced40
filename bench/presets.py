"""What the tuned micro-batch gains over sizes chosen by hand, and what the cut by length does.

    python -m bench.presets --result bench/results/presets-cpu.json

The micro-batches of the presets and of a tuning, each cut in two ways, take turns on the same samples in one
run: `bench.turns`. The effective batch is the tuning's for all of them, so that each step is the same one.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import profiles
from bench.commands import write_result
from bench.paired import Ratio, paired, words
from bench.repeat import timed as chatlm
from bench.turns import Turn, timed

PRESETS = ("small", "fast", "standard")
TUNED = "tuned"
CUTS = {"fixed": "fixed size", "length": "by length"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the bundled rows without it")
    parser.add_argument("--model", default="chatlm-tiny")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--vram-limit", default="2GiB")
    parser.add_argument("--rounds", type=int, default=5, help="that are timed, after one more")
    options = parser.parse_args()
    common = ["--model", options.model]
    if options.data:
        common += ["--data", str(options.data.resolve())]
    with tempfile.TemporaryDirectory() as folder:
        card = ("--target-vram", "0.6", "--vram-limit", options.vram_limit, "--num-processes", "1")
        chatlm(Path(folder), "autotune", *card, "--device", options.device, *common)
        tuned = Path(folder) / "profiles" / "tuned.toml"
        turns = turns_of(profiles.load(str(tuned)).batch.micro_batch_size)
        document = {
            "model": options.model,
            "rows": options.data.name if options.data else "bundled",
            **compare(tuned, turns, options.rounds, options.device, *common),
        }
    write_result(options.result, document)
    print(table(document))


def turns_of(tuned: int, names: Sequence[str] = PRESETS) -> list[Turn]:
    """Those presets' micro-batches and the tuned one, each in both cuts."""
    sizes = {name: profiles.load(name).batch.micro_batch_size for name in names} | {TUNED: tuned}
    return [
        Turn(name=name, micro_batch=min(size, tuned), cut=cut)
        for name, size in sizes.items()
        for cut in ("fixed", "length")
    ]


def compare(
    profile: Path, turns: Sequence[Turn], rounds: int, device: str, *flags: str
) -> dict[str, Any]:
    """The turns' figures, at the profile's effective batch."""
    return {
        "effective_batch": profiles.load(str(profile)).batch.effective_batch_size,
        "rounds": rounds,
        "turns": timed(turns, rounds, device, "--profile", str(profile), *flags),
    }


def row(document: Mapping[str, Any], name: str, cut: str) -> dict[str, Any]:
    """The figures of that micro-batch and cut."""
    (found,) = [turn for turn in document["turns"] if (turn["name"], turn["cut"]) == (name, cut)]
    return dict(found)


def gain(document: Mapping[str, Any], one: tuple[str, str], other: tuple[str, str]) -> Ratio:
    """How many times as fast one micro-batch and cut is as another, round by round."""
    ours, theirs = row(document, *one), row(document, *other)
    return paired(ours["samples_per_second"], theirs["samples_per_second"])


def table(document: Mapping[str, Any]) -> str:
    """Markdown, one row a micro-batch and cut; each ratio is to the first row."""
    first = document["turns"][0]
    lines = [
        "| micro-batch | cut | micro-batches a step | of the padded tokens are real | samples/s "
        f"| against `{first['name']}`, {CUTS[first['cut']]} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for turn in document["turns"]:
        ratio = gain(document, (turn["name"], turn["cut"]), (first["name"], first["cut"]))
        cells = [
            f"`{turn['name']}`: {turn['micro_batch']}",
            CUTS[turn["cut"]],
            f"{turn['micro_batches']:.0f}",
            f"{turn['padding_efficiency']:.2f}",
            f"{turn['median_samples_per_second']:.0f}",
            words(ratio),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
