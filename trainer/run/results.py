"""The results of a finished run: the final model, its card, and the plot of its losses."""

from pathlib import Path

import torch

from trainer.artifacts.loss_plot import draw_loss
from trainer.artifacts.model_card import CardInfo, write_card
from trainer.checkpointing.export import export_model
from trainer.model.accelerator import precision
from trainer.pretrained.presets import MODEL_PRESETS
from trainer.run.state import Run


def save_results(run: Run) -> None:
    """Writes the results and marks the run as finished; every rank calls it."""
    info = card_info(run)
    has_plot = run.is_main and draw(run)
    export_model(
        run.folder, run.engine, run.parts.loaded.original,
        dtype=run.export_dtype, max_new_tokens=run.longest_answer,
        describe=lambda folder: write_card(folder, info, plot=has_plot),
    )  # fmt: skip
    if run.is_main:
        run.folder.finish()
        run.notice(run.folder.settle())
    run.engine.accelerator.wait_for_everyone()


def draw(run: Run) -> bool:
    """Whether the loss was plotted; an error becomes a notice, since the training is complete."""
    try:
        draw_loss(run.folder.path)
    except Exception as error:  # noqa: BLE001
        run.notice(f"the loss was not drawn: {error}")
        return False
    return True


def card_info(run: Run) -> CardInfo:
    settings, parts = run.settings, run.parts
    model = settings.workload.model
    metrics, evaluations = run.folder.metrics.read(), run.folder.evaluations.read()
    own = torch.cuda.get_device_name() if settings.workload.device == "cuda" else "CPU"
    return CardInfo(
        settings=settings,
        plan=run.plan,
        precision=precision(settings.workload),
        encoder=parts.loaded.encoder,
        from_hub=model not in MODEL_PRESETS and not Path(model).is_dir(),
        parameters=parts.parameters,
        learning_rate=run.learning_rate,
        rows=len(parts.collator.store),
        eval_rows=None if parts.eval_collator is None else len(parts.eval_collator.store),
        steps=run.done,
        loss=run.loss if not metrics else metrics[-1]["loss"],
        peak=max((record["device_peak_bytes"] for record in metrics), default=run.peak),
        device=", ".join(sorted(set(settings.device_names))) or own,
        evaluation=evaluations[-1] if evaluations else None,
    )
