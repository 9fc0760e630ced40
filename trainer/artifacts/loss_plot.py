"""Draws a run's loss, `loss.png` and `loss.svg`, from the logs in its folder.

`python -m trainer.artifacts.loss_plot RUN_FOLDER` draws them again. It needs `chatlm[reports]`.
"""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autotune import files
from autotune.errors import ChatlmError, OutputError, UsageError
from autotune.terminal import OutputFailed, standard_outputs, tell_failed_output, write
from trainer.artifacts.jsonl_log import CURVE, EVALUATIONS, JsonlLog

PAPER, INK, QUIET, GRID = "#fbfbfa", "#33383f", "#8a9099", "#e4e6e8"
"""An opaque background, so that the picture is readable on light and dark pages."""
TRAINING, EVALUATION, RATE = "#2f6fb0", "#d1602b", "#c9ced4"
SMOOTHED = 30
"""The smooth line averages 1/30 of the steps to each side."""


def draw_loss(folder: Path) -> list[Path]:
    """Draws training loss, evaluations and learning rate; returns the files.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the folder holds no steps, or cannot be written.
    """
    steps, evaluations = (
        [record for record in JsonlLog(folder / name, fields).read() if record["loss"] is not None]
        for name, fields in (("metrics.jsonl", CURVE), ("evaluations.jsonl", EVALUATIONS))
    )
    if not steps:
        raise OutputError(f"{folder} holds no steps to draw (metrics.jsonl)", "give a run's folder")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "the plot needs matplotlib, which is not installed",
            f"run `pip install matplotlib`, then `python -m trainer.artifacts.loss_plot {folder}`",
        ) from error
    style: Any = {
        "font.family": "sans-serif", "font.size": 10, "text.color": INK, "axes.labelcolor": INK,
        "xtick.color": QUIET, "ytick.color": QUIET,
        "svg.hashsalt": "chatlm",  # the same run gives the same bytes
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 5), dpi=150, facecolor=PAPER, layout="constrained")
        draw_axes(figure, folder.resolve().name, steps, evaluations)
        drawn: dict[str, Any] = {"png": {}, "svg": {"metadata": {"Date": None}}}
        pictures = [folder / f"loss.{kind}" for kind in drawn]
        try:
            for picture, options in zip(pictures, drawn.values(), strict=True):
                content = io.BytesIO()
                figure.savefig(content, format=picture.suffix[1:], **options)
                files.write_bytes(picture, content.getvalue())
        except OSError as error:
            raise OutputError(f"cannot write {picture}: {error.strerror}") from error
    return pictures


def draw_axes(
    figure: Any, name: str, steps: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    from matplotlib.patheffects import withStroke

    axes = figure.add_subplot(facecolor=PAPER)
    rates = axes.twinx()
    axes.set_zorder(rates.get_zorder() + 1)  # losses above the rate
    axes.patch.set_visible(False)

    numbers = [r["step"] for r in steps]
    losses = [r["loss"] for r in steps]
    axes.plot(numbers, losses, color=TRAINING, alpha=0.28, linewidth=0.9)
    axes.plot(numbers, smoothed(losses), color=TRAINING, linewidth=2, label="training")
    evaluated = [r["loss"] for r in evaluations]
    if evaluations:
        axes.plot(
            [r["step"] for r in evaluations], evaluated, label="evaluation", color=EVALUATION,
            linewidth=1.4, marker="o", markersize=5.5, markeredgecolor=PAPER, markeredgewidth=1.2,
        )  # fmt: skip
        best = min(evaluations, key=lambda r: r["loss"])
        bleu = f", BLEU {best['bleu']:.1f}" if isinstance(best.get("bleu"), float) else ""
        axes.annotate(
            f"lowest {best['loss']:.3g}{bleu}", (best["step"], best["loss"]), color=EVALUATION,
            textcoords="offset points", xytext=(-4, 12), ha="right", va="bottom", fontsize=9,
            path_effects=[withStroke(linewidth=3, foreground=PAPER)],
        )  # fmt: skip
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss per target token")
    axes.set_xlim(min(numbers[0], 0), numbers[-1] * 1.01)
    # without the highest 1/200 of the steps: outliers would flatten the rest
    usual = sorted(losses)[: len(losses) - len(losses) // 200]
    axes.set_ylim(0.0, 1.06 * max(usual[-1], *evaluated, 0.001))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)

    highest_rate = max(r["learning_rate"] for r in steps)
    rates.plot(numbers, [r["learning_rate"] for r in steps], color=RATE, linewidth=1.1)
    rates.set_facecolor(PAPER)
    rates.set_ylim(0, 1.06 * highest_rate or 1)
    rates.set_yticks([0, highest_rate], ["0", f"{highest_rate:.2g}"])
    rates.set_ylabel("learning rate", color=QUIET, labelpad=-12)
    for side in (axes, rates):
        side.tick_params(length=0)
        side.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=GRID)

    axes.set_title(name, loc="left", fontsize=13, fontweight="bold", pad=14)
    handles, labels = axes.get_legend_handles_labels()
    (line,) = rates.get_lines()
    axes.legend(
        [*handles, line], [*labels, "learning rate"], loc="lower right",
        bbox_to_anchor=(1, 1.0), ncols=3, frameon=False, labelcolor=INK, handlelength=1.6,
    )  # fmt: skip


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred moving average with triangular weights."""
    reach = max(2, len(values) // SMOOTHED)
    weights = 1 + reach - np.abs(np.arange(-reach, reach + 1))
    sums, counts = (np.convolve(v, weights) for v in (values, np.ones(len(values))))
    means: list[float] = (sums / counts)[reach : reach + len(values)].tolist()
    return means


def main() -> None:
    with standard_outputs():
        try:
            if len(sys.argv) != 2:
                raise UsageError("usage: python -m trainer.artifacts.loss_plot RUN_FOLDER")
            write("".join(f"{file}\n" for file in draw_loss(Path(sys.argv[1]))), sys.stdout)
        except ChatlmError as error:
            write(f"chatlm: {error}\n", sys.stderr)
            sys.exit(1)
        except OutputFailed as error:
            tell_failed_output(error)
            sys.exit(1)


if __name__ == "__main__":
    main()
