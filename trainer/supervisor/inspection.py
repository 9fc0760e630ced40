"""`chatlm data`: the rows of files as a model would be trained on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import profiles
from trainer.config.options import DataOptions
from trainer.config.resolve import workload_settings
from trainer.data.inspection import Lengths, ShownRow, lengths, pick, show
from trainer.data.notices import data_notice
from trainer.data.token_store import open_store
from trainer.events import Tokenising
from trainer.reading.readers import bundled, look, read_rows
from trainer.reading.sources import find_files

FIRST_ROWS = 3
"""Rows that are shown unless one is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known about the files' rows as a model gets them."""

    files: tuple[str, ...]
    read_as: tuple[str, ...]
    """A line about each source: how it is read."""
    model: str
    is_causal: bool
    template: str
    """Whose format the tokens have: `chat template` or `no chat template`."""
    rows: int
    learnt_tokens: int
    """Tokens that the loss counts."""
    lengths: tuple[Lengths, ...]
    """Of sources, targets, and both together."""
    cut_sources: int
    cut_targets: int
    notices: tuple[str, ...]
    shown: tuple[ShownRow, ...]


def inspect_data(
    options: DataOptions,
    names: Sequence[str],
    *,
    progress: Callable[[Tokenising], None] | None = None,
) -> Inspection:
    """The rows of the named files, tokenised as `chatlm train` would; the store is kept for it.

    Without names they are the profile's, or the bundled ones.

    Raises:
        DataError, ModelError, OutputError: as training would, before it starts.
        UsageError: there is no such row.
    """
    profile = profiles.load(options.profile)
    settings = workload_settings(options, profile, device="cpu")
    named = tuple(names) or settings.data or (bundled("train"),)
    read_as = look(named, settings.columns)
    files = find_files(named)
    # loads torch, which a wrong column need not wait for
    from trainer.pretrained.loading import load_encoder

    encoder = load_encoder(settings.model, trust_remote_code=settings.trust_remote_code)
    max_source, max_target = settings.max_source_length, settings.max_target_length
    limits = {"max_source": max_source, "max_target": max_target}
    told: list[str] = []
    store = open_store(
        files, encoder, settings.columns, max_source=max_source, max_target=max_target,
        progress=progress, notify=told.append,
    )  # fmt: skip
    numbers = [options.row] if options.row else range(1, min(FIRST_ROWS, len(store)) + 1)
    picked = pick((each for file in files for each in read_rows(file, settings.columns)), numbers)
    stats = store.stats
    notice = data_notice(stats, is_causal=encoder.is_causal, **limits)
    return Inspection(
        files=files,
        read_as=tuple(read_as),
        model=settings.model,
        is_causal=encoder.is_causal,
        template="chat template" if encoder.templated else "no chat template",
        rows=len(store),
        learnt_tokens=int(store.loss_mask_lengths(np.arange(len(store))).sum()),
        lengths=lengths(store, **limits),
        cut_sources=stats.cut_sources,
        cut_targets=stats.cut_targets,
        notices=tuple(filter(None, [*told, notice])),
        shown=tuple(show(encoder, number, each, **limits) for number, each in picked),
    )
