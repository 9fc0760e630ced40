"""The parts of a worker, made from settings: model, data and engine. Probe and training both use them."""

from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator

from autotune.devices.allocator import HostMemory
from autotune.errors import ModelError
from trainer.batching.collator import Collator
from trainer.config.settings import WorkloadSettings
from trainer.data.notices import data_notice
from trainer.data.token_store import open_store
from trainer.events import Tokenising
from trainer.model.data_fit import check_positions, check_vocabulary
from trainer.model.engine import Engine
from trainer.model.finite import first_not_finite
from trainer.pretrained.loading import Loaded, load_model
from trainer.reading.readers import bundled
from trainer.reading.sources import find_files


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The model, still on the CPU, and its data, tokenised."""

    loaded: Loaded
    collator: Collator
    eval_collator: Collator | None
    """None without evaluation data."""
    parameters: int
    """Number of the model's parameters; adapters are not counted."""

    def notices(self, settings: WorkloadSettings) -> list[str]:
        """Lines about the model, and about training rows that are not learnt as they stand in the file."""
        cut = data_notice(
            self.collator.store.stats,
            is_causal=self.loaded.encoder.is_causal,
            max_source=settings.max_source_length,
            max_target=settings.max_target_length,
        )
        return [*self.loaded.notices, *filter(None, [cut])]


def make_parts(
    settings: WorkloadSettings,
    *,
    eval_data: tuple[str, ...],
    progress: Callable[[Tokenising], None] | None = None,
    notify: Callable[[str], object] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Parts:
    """The model and the data. All ranks call it at once; one process a host tokenises.

    `notify` gets a line about tokens that were damaged on the disk.

    Raises:
        ModelError: the model cannot be loaded.
        DataError, OutputError, Interrupted: as `open_store` does.
        UsageError: a row has more tokens than the model takes, or a token that it does not have.
    """
    loaded = load_model(
        settings.model,
        dropout=settings.dropout,
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
    )
    start = getattr(loaded.model.config, "decoder_start_token_id", None)

    def collate(files: tuple[str, ...], *, data: str) -> Collator:
        with HostMemory.excluding():
            store = open_store(
                find_files(files),
                loaded.encoder,
                settings.columns,
                max_source=settings.max_source_length,
                max_target=settings.max_target_length,
                progress=progress,
                notify=notify,
                should_stop=should_stop,
            )
        collator = Collator(store, loaded.encoder, start)
        check_vocabulary(loaded.model, collator, data=data)
        check_positions(loaded.model, collator, data=data)
        return collator

    return Parts(
        loaded=loaded,
        collator=collate(settings.data or (bundled("train"),), data="data"),
        eval_collator=collate(eval_data, data="evaluation data") if eval_data else None,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
    )


def make_engine(
    accelerator: Accelerator, parts: Parts, settings: WorkloadSettings, **options: float
) -> Engine:
    """The engine with these options of its own, its gradients and optimizer state allocated.

    Raises:
        ModelError: a weight of the model is not finite.
    """
    engine = Engine(accelerator, parts.loaded.model, settings, **options)
    check_finite(engine, settings.model)
    engine.preallocate(parts.collator.worst_case_batch(1))
    return engine


def check_finite(engine: Engine, model: str) -> None:
    """Raises ModelError on every rank where a weight is not finite, also a frozen one: it is exported too."""
    name = first_not_finite(dict(engine.unwrapped.named_parameters()))
    if name is not None:
        raise ModelError(
            f"{name} in the weights of {model} is not finite (inf or NaN)",
            "use an earlier checkpoint of that model, or download it again",
        )
