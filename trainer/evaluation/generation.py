"""Greedy answers to rows of a store, as token ids: batched, with a cache, divided among the ranks.

Rows are sorted by prompt length, the longest first, so that there is little padding.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from autotune.devices.allocator import is_out_of_memory
from trainer.batching.collator import Collator, padded_inputs
from trainer.model.engine import Engine
from trainer.pretrained.original import ends

Ids = npt.NDArray[np.int64]

DEFAULT_GENERATION_BATCH = 64
"""Sequences per batch where the profile has no evaluation batch. Every answer waits for the longest of
its batch, and a CPU is hardly faster with more."""


def answer(
    engine: Engine, collator: Collator, rows: Sequence[int], *, size: int, longest: int
) -> dict[int, Ids]:
    """This rank's answers by row number: at most `longest` tokens each, the end token left out.

    `rows` are the rows of all ranks; `size` is the sequences per batch on this rank.
    """
    lengths = collator.store.source_lengths(np.asarray(rows, dtype=np.int64))
    own = [rows[index] for index in own_rows(engine, lengths)]
    found: dict[int, Ids] = {}
    with engine.evaluating(), _greedy(engine, collator, longest) as model:
        # no collective in here: `evaluating` gathers a sharded model, so ranks may run unequal numbers
        for start in range(0, len(own), size):
            part = own[start : start + size]
            found.update(zip(part, _generate(model, collator, part), strict=True))
    return found


def own_rows(engine: Engine, lengths: Ids) -> Ids:
    """This rank's share of the row indices, the longest first: a lack of memory shows at once."""
    rank, world = engine.accelerator.process_index, engine.accelerator.num_processes
    return np.argsort(-lengths, kind="stable")[rank::world]


def dry_run_generation(engine: Engine, collator: Collator, *, most: int, longest: int) -> int:
    """The sequences per batch of generation: at most `most`, within the peak memory of training.

    The loss's memory does not predict it: logits take more or less than the cache of keys and values
    (256 + 256 tokens, 0.2 B in fp32: 60 MB of logits and softmax, 31 MB of cache; a Llama of 7 B in
    bf16: 131 MB and 268 MB). So the cache of one longest sequence is measured, and doubled to leave
    room for activations. The size is then run once, and halved while it does not fit.
    """
    memory = engine.memory
    highest = memory.peak()
    with engine.evaluating():
        each = 2 * _fill_cache(engine, collator, 1, longest)
        if not memory.caches:  # freed memory then counts at once
            gc.collect()
            memory.release_cached()
        size = max(1, min(most, (highest - memory.allocated()) // each))
        while True:
            try:
                _fill_cache(engine, collator, size, longest)
                return size
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            size //= 2
            gc.collect()


@contextmanager
def _greedy(engine: Engine, collator: Collator, longest: int) -> Iterator[PreTrainedModel]:
    """The model set to greedy decoding until any of its ends, without its own beams and limits.

    A forced first token is kept where training targets begin with it, as NLLB's do with a language.
    """
    model = engine.unwrapped
    before = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        use_cache=True,  # training set the model's own to False
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        eos_token_id=ends(before, collator.encoder),
        forced_bos_token_id=_forced_first(before, collator),
        pad_token_id=collator.encoder.pad,
    )
    try:
        yield model
    finally:
        model.generation_config = before


def _forced_first(generation: GenerationConfig | None, collator: Collator) -> int | None:
    forced: int | None = getattr(generation, "forced_bos_token_id", None)
    return forced if collator.store.target(0)[:1].tolist() == [forced] else None


def _generate(model: PreTrainedModel, collator: Collator, rows: Sequence[int]) -> Iterator[Ids]:
    encoder = collator.encoder
    inputs = _prompts(model, [collator.store.source(row) for row in rows], collator)
    generate: Any = model.generate
    output = generate(**inputs)
    # after the prompt or the start token
    begin = inputs["input_ids"].shape[1] if encoder.is_causal else 1
    stops = model.generation_config.eos_token_id
    for ids in output[:, begin:].cpu().numpy():  # (answer,)
        found = np.flatnonzero(np.isin(ids, stops))
        yield ids[: found[0]] if len(found) else ids


def _fill_cache(engine: Engine, collator: Collator, size: int, longest: int) -> int:
    """Bytes of the cache after the longest prompt and a full answer, for `size` sequences."""
    store, is_causal = collator.store, collator.encoder.is_causal
    model: Any = engine.unwrapped
    source = store.source(store.stats.longest_source[0])
    answered = np.full(longest, source[0], dtype=np.int64)
    prompt = np.concatenate([source, answered]) if is_causal else source
    inputs = _prompts(model, [prompt] * size, collator)
    with engine.accelerator.autocast():
        if not is_causal:
            inputs = {
                "input_ids": torch.from_numpy(answered).to(model.device).expand(size, -1),
                "encoder_hidden_states": model.get_encoder()(**inputs).last_hidden_state,
                "encoder_attention_mask": inputs["attention_mask"],
            }
        cache = model.get_decoder()(**inputs, use_cache=True).past_key_values
    caches = [cache] if is_causal else [cache.self_attention_cache, cache.cross_attention_cache]
    return sum(layer.keys.nbytes + layer.values.nbytes for part in caches for layer in part.layers)


def _prompts(
    model: PreTrainedModel, sequences: Sequence[npt.NDArray[Any]], collator: Collator
) -> dict[str, Tensor]:
    """Ids and mask on the model's device, each (batch, prompt).

    Causal models are padded on the left: answers begin where prompts end. Encoders are padded on the
    right: BART counts positions from the left and ignores the mask.
    """
    encoder = collator.encoder
    inputs = padded_inputs(sequences, encoder.pad, left=encoder.is_causal)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}
