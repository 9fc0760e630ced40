"""The figures that are compared when the benchmarks have run anew: which, and which way is better.

A line of `FIGURES` is all that another program needs: its words, what is better, its kind, and where it is
in the document of its file. A kind says how far a figure moves by itself; less than that is no change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.loss import CASES
from bench.paired import Ratio, spread
from bench.presets import gain
from bench.trainers import ratio

Document = Mapping[str, Any]
LOSS_MODELS = [case.name for case in CASES]
Better = Literal["less", "more"]
At = Callable[[Any], float | Ratio | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How far apart, relative to the old one, two figures are still the same, and how one is shown."""

    noise: float
    show: Callable[[float], str]
    is_speed: bool = False
    """Whether other work on the machine changes it."""


COUNT = Kind(noise=0.0, show=lambda value: f"{value:,.4g}")
BYTES = Kind(noise=0.01, show=lambda value: f"{value / 2**20:,.0f} MiB")
SHARE = Kind(noise=0.01, show=lambda value: f"{value:.1%}")
LOSS = Kind(noise=0.01, show=lambda value: f"{value:.3f}")
GROWTH = Kind(noise=0.3, show=lambda value: f"{value / 1e6:,.0f} MB")
"""What is left between two peaks of hundreds of megabytes."""
ROUNDING = Kind(noise=9.0, show=lambda value: f"{value:.0e}")
"""What rounding leaves: ten times as much is a change."""
SECONDS = Kind(noise=0.1, show=lambda value: f"{value:,.1f} s", is_speed=True)
SPEED = Kind(noise=0.1, show=lambda value: f"{value:,.0f} /s", is_speed=True)
RATIO = Kind(noise=0.05, show=lambda value: f"{value:.2f} x", is_speed=True)
"""Of paired runs; where the rounds went further apart than that, as far as they did."""
CORE = Kind(noise=0.1, show=lambda value: f"{value:.2%}", is_speed=True)
"""A share of one core."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a result file."""

    what: str
    better: Better
    kind: Kind
    at: At

    def read(self, document: Document | None) -> tuple[float, float] | None:
        """The value and its noise; None where there is no document, or one that does not know the figure."""
        if document is None:
            return None
        try:
            found = self.at(document)
        except (LookupError, TypeError, ValueError):  # of an older program
            return None
        if isinstance(found, dict):
            return found["median"], max(self.kind.noise, spread(found))
        return None if found is None else (float(found), self.kind.noise)


def row(document: Document, rows: str, **wanted: Any) -> dict[str, Any]:
    """The row of that table of the document which has these values; raises LookupError without one."""
    for found in document[rows]:
        if all(found[key] == value for key, value in wanted.items()):
            chosen: dict[str, Any] = found
            return chosen
    raise LookupError(f"{rows} without {wanted}")


def tuner(name: str) -> Callable[[Document], dict[str, Any]]:
    return lambda document: row(document, "tuners", name=name)


def time_to(name: str) -> At:
    """Our time to theirs."""
    return lambda d: row(d, "tuners", name=name)["time_ratio"]


def turns(one: tuple[str, str], other: tuple[str, str]) -> At:
    """The speed of one micro-batch and cut against another's."""
    return lambda d: gain(d, one, other)


def trainer(peer: str, way: str) -> At:
    """Real tokens/s of one of our ways against that peer's, round by round."""

    return lambda d: ratio(row(row(d, "comparisons", peer=peer), "trainers", name=way))


def padding(way: str) -> At:
    return lambda d: ratio(row(d, "trainers", name=way))


def real_share(way: str) -> At:
    """Of the padded tokens."""
    return lambda d: row(d, "trainers", name=way)["padding_efficiency"]


def of_model(name: str, key: str) -> At:
    return lambda d: row(d, "models", model=name)[key]


def of_format(form: str, key: str) -> At:
    return lambda d: d["formats"][form][key]


def trials(document: Document) -> int:
    return len(document["tuning"]["trials"])


def fault(name: str) -> At:
    return lambda d: row(d, "faults", fault=name)["seconds"]


def probed(document: Document) -> float:
    """The share of the budget that the answer's probe held."""
    (device,) = document["tuning"]["devices"]
    return float(device["peak_bytes"] / device["budget_bytes"])


FORMATS = ("parquet", "csv", "jsonl.gz")
FAULTS = ("oom", "kill once", "kill always", "hang once", "hang always")
PEERS = ("accelerate", "power", "binsearch")

FIGURES: dict[str, tuple[Figure, ...]] = {
    "peers-cpu": (
        *(Figure(f"time, ours to {name}'s", "less", RATIO, time_to(name)) for name in PEERS),
        Figure("answer to the oracle's", "more", SHARE, lambda d: tuner("ours")(d)["answer_to_oracle"]),
        Figure("probes", "less", COUNT, lambda d: tuner("ours")(d)["probes"]),
        Figure("over budget or out of memory", "less", COUNT,
               lambda d: tuner("ours")(d)["over_budget"] + tuner("ours")(d)["out_of_memory"]),
        Figure("seconds", "less", SECONDS, lambda d: tuner("ours")(d)["seconds"]),
    ),
    "tune-0.2b-cpu": (
        Figure("seconds", "less", SECONDS, lambda d: d["tuning"]["seconds"]),
        Figure("probes", "less", COUNT, trials),
        Figure("micro-batch", "more", COUNT, lambda d: d["tuning"]["micro_batch_size"]),
        Figure("peak of the budget", "more", SHARE, probed),
    ),
    "faults-cpu": (
        *(Figure(name, "less", SECONDS, fault(name)) for name in FAULTS),
        Figure("processes left", "less", COUNT,
               lambda d: sum(found["processes_left"] for found in d["faults"])),
    ),
    "trainers-cpu": (
        *(Figure(f"{way} to {peer}", "more", RATIO, trainer(peer, way))
          for peer in ("seq2seq", "sft") for way in ("plain", "exact", "grouped")),
    ),
    "exactness-cpu": (
        Figure("ways to cut", "more", COUNT, lambda d: len(d["runs"])),
        Figure("loss, relative", "less", ROUNDING, lambda d: max(run["loss"] for run in d["runs"])),
        Figure("gradient norm, relative", "less", ROUNDING,
               lambda d: max(run["grad_norm"] for run in d["runs"])),
    ),
    "loss-cpu": (
        *(Figure(f"{model}: size, to logits", "more", COUNT, of_model(model, "micro_batch_ratio"))
          for model in LOSS_MODELS),
        *(Figure(f"{model}: speed, to logits", "more", RATIO, of_model(model, "speed_ratio"))
          for model in LOSS_MODELS),
    ),
    "kills-cpu": (
        Figure("kills", "more", COUNT, lambda d: d["summary"]["kills"]),
        Figure("weights, absolute", "less", ROUNDING, lambda d: d["summary"]["largest_weight_difference"]),
        Figure("checkpoints that did not load", "less", COUNT,
               lambda d: len(d["summary"]["checkpoints_that_did_not_load"])),
        Figure("most steps lost", "less", COUNT, lambda d: d["summary"]["most_steps_lost"]),
    ),
    "rows-2m-cpu": (
        *(Figure(f"{form}: memory beyond 1,000 rows", "less", GROWTH, of_format(form, "most_beyond_reference_bytes"))
          for form in FORMATS),
        *(Figure(f"{form}: rows tokenised", "more", SPEED, of_format(form, "tokenise_rows_per_second"))
          for form in FORMATS),
    ),
    "demo-cpu": (
        Figure("seconds", "less", SECONDS, lambda d: d["seconds"]),
        Figure("probes", "less", COUNT, lambda d: d["probes"]),
        Figure("micro-batch", "more", COUNT, lambda d: d["micro_batch_size"]),
        Figure("training peak of the budget", "more", SHARE,
               lambda d: d["training_peak_bytes"] / d["budget_bytes"]),
        Figure("tuned to small, cut by length", "more", RATIO,
               turns(("tuned", "length"), ("small", "length"))),
        Figure("unseen questions answered", "more", SHARE, lambda d: d["exact_match"]),
    ),
    "presets-cpu": (
        *(Figure(f"{name} to small, fixed size", "more", RATIO, turns((name, "fixed"), ("small", "fixed")))
          for name in ("fast", "standard", "tuned")),
        *(Figure(f"{name}, by length to fixed size", "more", RATIO, turns((name, "length"), (name, "fixed")))
          for name in ("small", "fast", "standard", "tuned")),
    ),
    "contract-cpu": (
        Figure("training peak to the probe's", "less", SHARE,
               lambda d: d["training"]["peak_against_probe"]),
        Figure("training peak of the budget", "more", SHARE,
               lambda d: d["training"]["peak_bytes"] / d["training"]["budget_bytes"]),
        Figure("probes", "less", COUNT, trials),
    ),
    "repeat-cpu": (
        Figure("runs", "more", COUNT, lambda d: d["summary"]["runs"]),
        Figure("failures", "less", COUNT, lambda d: len(d["failures"])),
        Figure("answers: smallest to largest", "more", SHARE,
               lambda d: d["summary"]["answer"]["min"] / d["summary"]["answer"]["max"]),
        Figure("probes, mean", "less", COUNT, lambda d: d["summary"]["probes"]["mean"]),
        Figure("highest training peak of the budget", "less", SHARE,
               lambda d: d["summary"]["highest_training_peak_to_budget"]),
    ),
    "search-simulated": (
        Figure("probes, mean", "less", COUNT, lambda d: d["algorithms"]["chatlm"]["all"]["probes_mean"]),
        Figure("of the optimum, mean", "more", SHARE,
               lambda d: d["algorithms"]["chatlm"]["all"]["quality_mean"]),
        Figure("over budget a tuning", "less", COUNT,
               lambda d: d["algorithms"]["chatlm"]["all"]["over_per_tuning"]),
    ),
    "accumulation-cpu": (
        Figure("ours: largest norm to smallest", "less", COUNT,
               lambda d: round(max(found["largest_to_smallest"] for found in d["trainers"]
                                   if found["trainer"] == "ours"), 5)),
    ),
    "sampling-cpu": (
        Figure("of a core", "less", CORE, lambda d: d["share_of_a_core"]),
    ),
    "sft-cpu": (
        Figure("evaluation loss", "less", LOSS, lambda d: d["evaluations"][-1]["loss"]),
        Figure("of the padded tokens are real", "more", SHARE, lambda d: d["padding_efficiency"]),
    ),
    "padding-cpu": (
        *(Figure(f"{way} to fixed size", "more", RATIO, padding(way)) for way in ("exact", "grouped")),
        *(Figure(f"{way}: real of the padded tokens", "more", SHARE, real_share(way))
          for way in ("exact", "grouped")),
    ),
    "chaos-cpu": (
        Figure("promises broken", "less", COUNT, lambda d: sum(bool(r["broken"]) for r in d["rows"])),
        Figure("disturbances", "more", COUNT, lambda d: len(d["rows"])),
    ),
}  # fmt: skip
"""By result file, in the order of the comparison."""
