"""Writes the figures of README.md, docs/training.md and docs/search.md, from the files in `bench/results/`.

`python -m bench.table` does; a test holds the pages to it. A table stands between two marks that name it,
and a figure within a sentence is found by the words about it.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import accumulation, exactness, loss, padding, peers, presets, sft, simulate, trainers
from bench.paired import of_rounds, words

RESULTS = Path(__file__).parent / "results"
PAGES = tuple(
    RESULTS.parents[1] / name for name in ("README.md", "docs/training.md", "docs/search.md")
)
GIB = 2**30


def table() -> str:
    """Markdown, one row a claim."""
    rows = [
        *demo_rows(read("demo-cpu")),
        *preset_rows("presets-cpu"),
        *contract_rows(read("contract-cpu")),
        *large_rows(read("tune-0.2b-cpu")),
        *repeat_rows(read("repeat-cpu")),
        *fault_rows(read("faults-cpu")),
        *sampling_rows(read("sampling-cpu")),
        *accumulation_rows(read("accumulation-cpu")),
        *exactness_rows("exactness-cpu"),
        *loss_rows(read("loss-cpu")),
        *kill_rows("kills-cpu"),
        *rows_2m_rows("rows-2m-cpu"),
        *sft_rows("sft-cpu"),
        *(row for name in ("padding-cpu", "padding-gpu") for row in padding_rows(name)),
        *(row for name in ("trainers-cpu", "trainers-gpu") for row in trainer_rows(name)),
    ]
    lines = ["| what | figure | file |", "| --- | --- | --- |"]
    lines += [f"| {what} | {figure} | `{file}.json` |" for what, figure, file in rows]
    return "\n".join(lines)


def of_each_device(name: str, as_table: Callable[[Mapping[str, Any]], str]) -> str:
    """Markdown: the whole table of each file of that program that was measured, under its name."""
    return "\n\n".join(
        f"`{name}-{device}.json`\n\n{as_table(read(f'{name}-{device}'))}"
        for device in ("cpu", "gpu")
        if was_measured(f"{name}-{device}")
    )


TABLES: dict[str, Callable[[], str]] = {
    "measured": table,
    "peers": lambda: peers.table(read("peers-cpu")),
    "simulated": lambda: simulate.table(read("search-simulated")),
    "realcards": lambda: simulate.real_table(read("search-simulated")),
    "frontier": lambda: simulate.frontier_table(read("search-simulated")),
    "presets": lambda: of_each_device("presets", presets.table),
    "exactness": lambda: of_each_device("exactness", exactness.table),
    "loss": lambda: of_each_device("loss", loss.table),
    "accumulation": lambda: of_each_device("accumulation", accumulation.table),
    "padding": lambda: of_each_device("padding", padding.table),
    "trainers": lambda: of_each_device("trainers", trainers.table),
}
"""By the name in the marks."""
MARKED = re.compile(
    r"(<!-- figures (?P<name>[a-z]+): python -m bench\.table -->\n).*?(<!-- end of figures -->)",
    re.DOTALL,
)


def sentences() -> dict[str, str]:
    """Figures within a sentence: a pattern of the words, and the words with the figure of today."""
    simulated = read("search-simulated")
    probes = simulated["algorithms"]["chatlm"]["all"]["probes_mean"]
    cards = simulated["real_cards"]
    real, beyond = (cards["algorithms"]["chatlm"][key] for key in ("probes_mean", "oom_per_tuning"))
    mean, low, worst, more = (
        cards["throughput"][key]
        for key in ("speed_mean", "speed_p5", "speed_min", "more_probes_mean")
    )
    minutes = math.ceil(read("demo-cpu")["seconds"] / 60)
    return {
        r"after [0-9.]+ on average in simulation, and [0-9.]+ on": (
            f"after {probes:.1f} on average in simulation, and {real:.1f} on"
        ),
        r"5 % of the card above the target; [0-9.]+ a": (
            f"5 % of the card above the target; {beyond:.2f} a"
        ),
        r"[0-9.]+% of the best speed on average, .* probes more": (
            f"{mean:.1%} of the best speed on average, {low:.1%} at the 5th percentile and {worst:.0%} at "
            f"worst, with {more:.1f} probes more"
        ),
        r"takes under [0-9]+ minutes on two": f"takes under {minutes} minutes on two",
    }


def filled(page: str) -> str:
    """The page with the tables and figures of today; raises KeyError where marks name no table."""
    page = MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m['name']]()}\n\n{m[3]}", page)
    for pattern, sentence in sentences().items():
        page = re.sub(pattern, sentence, page)
    return page


def write() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text()))


def was_measured(name: str) -> bool:
    return (RESULTS / f"{name}.json").exists()


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


Row = tuple[str, str, str]


def demo_rows(demo: dict[str, Any]) -> list[Row]:
    return [
        (
            "`make demo`, after the install",
            f"{demo['seconds']:.0f} s with {demo['probes']} probes; micro-batch "
            f"{demo['micro_batch_size']}, {demo['exact_match']:.0%} of unseen questions answered "
            f"exactly",
            "demo-cpu",
        ),
    ]


def preset_rows(name: str) -> list[Row]:
    """The tuned size against the smallest preset's, with the cut alike and with ours."""
    if not was_measured(name):
        return []
    document = read(name)
    tuned, small = (
        presets.row(document, each, "length")["micro_batch"] for each in ("tuned", "small")
    )
    size, both, of_one_size = (
        words(presets.gain(document, ("tuned", one), ("small", other)))
        for one, other in (("length", "length"), ("length", "fixed"), ("fixed", "fixed"))
    )
    return [
        (
            f"samples/s of the tuned micro-batch {tuned} against the preset `small`'s {small}, both at "
            f"effective batch {document['effective_batch']}, in turns on the same samples",
            f"{size} if both are cut by length; {of_one_size} if both are cut into micro-batches of one "
            f"size; {both} for ours by length against theirs of one size",
            name,
        )
    ]


def contract_rows(contract: dict[str, Any]) -> list[Row]:
    training = contract["training"]
    peak, budget = training["probe_peak_bytes"] / GIB, training["budget_bytes"] / GIB
    return [
        (
            f"peak of {training['steps']} training steps on {rows_of(contract)}",
            f"{training['peak_bytes'] / GIB:.3f} GiB; probed {peak:.3f}, budget {budget:.3f} GiB",
            "contract-cpu",
        ),
    ]


def rows_of(document: dict[str, Any]) -> str:
    """The data file that was used, by name."""
    return f"`{document['rows']}`" if document["rows"] != "bundled" else "the bundled rows"


def large_rows(large: dict[str, Any]) -> list[Row]:
    (device,) = large["tuning"]["devices"]
    return [
        (
            f"`{large['model']}` tuned on the CPU, card of {device['total_bytes'] / GIB:.0f} GiB",
            f"micro-batch {large['tuning']['micro_batch_size']}, {len(large['tuning']['trials'])} "
            f"probes in {large['tuning']['seconds']:.0f} s, peak "
            f"{device['peak_bytes'] / device['budget_bytes']:.0%} of the budget",
            "tune-0.2b-cpu",
        )
    ]


def repeat_rows(repeat: dict[str, Any]) -> list[Row]:
    said = repeat["summary"]
    answer = said["answer"]
    again = said["second_tuning_probes"]
    return [
        (
            f"{said['runs']} times the same tuning, each with {repeat['training_steps']} training steps",
            f"micro-batch {answer['min']} to {answer['max']} in {said['probes']['mean']:.1f} probes; "
            f"training peaks at {said['highest_training_peak_to_budget']:.1%} of the budget at most, "
            f"within {said['farthest_training_peak_from_probe']:.1%} of the probe's",
            "repeat-cpu",
        ),
        (
            f"the same tuning again in the same folder, {len(again)} times",
            f"{min(again)} to {max(again)} probes" if min(again) < max(again) else "1 probe each",
            "repeat-cpu",
        ),
    ]


def fault_rows(document: dict[str, Any]) -> list[Row]:
    faults = document["faults"]
    found = ", ".join(
        f"{f['fault']}: {f['micro_batch_size'] or 'error'} in {f['seconds']:.0f} s" for f in faults
    )
    left = sum(f["processes_left"] for f in faults)
    return [
        (
            f"one of two gloo ranks fails from micro-batch {document['at']} on, of 8",
            f"{found}; {left} processes left",
            "faults-cpu",
        )
    ]


def sampling_rows(sampling: dict[str, Any]) -> list[Row]:
    return [
        (
            f"sampling {sampling['devices']} made-up cards, the host and {sampling['workers']} workers "
            f"at 20 Hz",
            f"{sampling['share_of_a_core']:.2%} of a core",
            "sampling-cpu",
        )
    ]


def accumulation_rows(document: dict[str, Any]) -> list[Row]:
    found = {(row["model"], row["trainer"]): row["grad_norm"] for row in document["trainers"]}
    theirs, ours = found["chatlm-tiny", "seq2seq"], found["chatlm-tiny", "ours"]
    return [
        (
            f"gradient norm of the same {document['samples']} samples in 1, 2, 4 and 8 micro-batches",
            f"{' / '.join(f'{norm:.4f}' for norm in ours)}; transformers' Seq2SeqTrainer "
            f"{' / '.join(f'{norm:.1f}' for norm in theirs)}",
            "accumulation-cpu",
        )
    ]


def exactness_rows(name: str) -> list[Row]:
    if not was_measured(name):
        return []
    document = read(name)
    runs = document["runs"]
    loss, norm = (max(run[key] for run in runs) for key in ("loss", "grad_norm"))
    return [
        (
            f"loss / gradient norm of {document['steps']} steps cut in {len(runs)} ways: 1 to 4 "
            f"processes, unequal shares, killed and resumed on others (fp32, dropout 0)",
            f"differ by {loss:.0e} / {norm:.0e} at most, relative",
            name,
        )
    ]


def loss_rows(document: dict[str, Any]) -> list[Row]:
    return [
        (
            f"{found['model']}, loss without logits: micro-batch on an emulated card of {found['limit']}",
            f"{found['logits']['micro_batch']} → {found['chunked']['micro_batch']}; "
            f"{words(of_rounds(found['speed_ratios']))} as fast at {found['logits']['micro_batch']}",
            "loss-cpu",
        )
        for found in document["models"]
    ]


def kill_rows(name: str) -> list[Row]:
    if not was_measured(name):
        return []
    said = read(name)["summary"]
    return [
        (
            f"a run of {read(name)['steps']} steps with {said['kills']} SIGKILLs, each resumed on other "
            f"processes and cuts",
            f"weights {said['largest_weight_difference']:.0e} from the undisturbed run's at most; "
            f"{len(said['checkpoints_that_did_not_load'])} checkpoints that did not load, {said['most_steps_lost']} steps lost "
            f"at most",
            name,
        )
    ]


def rows_2m_rows(name: str) -> list[Row]:
    formats = read(name)["formats"]
    return [
        (
            f"host memory of training on {found['rows']:,} rows in {form}, beyond 1,000 rows",
            f"{found['most_beyond_reference_bytes'] / 1e6:.0f} MB anonymous in the process that also "
            f"tokenises them, at {found['tokenise_rows_per_second']:,.0f} rows/s",
            name,
        )
        for form, found in formats.items()
    ]


def sft_rows(name: str) -> list[Row]:
    if not was_measured(name):
        return []
    document = read(name)
    return [
        (
            f"`{document['model']}`, {document['epochs']:.0f} epochs on {rows_of(document)}",
            sft.words(document),
            name,
        )
    ]


def padding_rows(name: str) -> list[Row]:
    if not was_measured(name):
        return []
    document = read(name)
    found = {row["name"]: row for row in document["trainers"]}
    shares = " / ".join(f"{row['padding_efficiency']:.2f}" for row in found.values())
    gains = " and ".join(words(trainers.ratio(found[way])) for way in ("exact", "grouped"))
    return [
        (
            f"`{document['model']}` at effective batch {document['effective_batch']} on "
            f"{rows_of(document)}: random micro-batches / cut by length / `--length-grouping`",
            f"{shares} of the tokens are real, {gains} the real tokens/s",
            name,
        )
    ]


def trainer_rows(name: str) -> list[Row]:
    rows: list[Row] = []
    for comparison in read(name)["comparisons"] if was_measured(name) else ():
        found = {row["name"]: row for row in comparison["trainers"]}
        gains = " / ".join(words(trainers.ratio(found[way])) for way in trainers.LEAST)
        rows.append(
            (
                f"`{comparison['model']}`, real tokens/s against {trainers.PEERS[comparison['peer']]}: "
                f"cut alike / by length / `--length-grouping`",
                f"{gains}; peak {found['exact']['peak_ratio']:.2f} × theirs",
                name,
            )
        )
    return rows


if __name__ == "__main__":
    write()
