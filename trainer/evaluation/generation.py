"""Greedy answers to rows of a store: many at once, with a cache, each rank its own share of them.

Rows are taken by the length of their prompts, the longest first, so that little is padded. It knows
token ids alone; what an answer is worth is `scores`' business.
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
from trainer.batching.collator import Collator
from trainer.model.engine import Engine

Ids = npt.NDArray[np.int64]

WIDEST = 64
"""Sequences at once where the profile names no evaluation batch: every answer waits for the longest of
its batch, and a CPU is hardly faster with more."""


def answer(
    engine: Engine, collator: Collator, rows: Sequence[int], *, size: int, longest: int
) -> dict[int, Ids]:
    """The tokens of this rank's answers by row number: at most `longest`, less the end.

    `rows` are all that are to be answered, over all ranks; `size` is this rank's own.
    """
    accelerator = engine.accelerator
    lengths = collator.store.source_lengths(np.asarray(rows, dtype=np.int64))
    order = [rows[index] for index in np.argsort(-lengths, kind="stable")]
    own = order[accelerator.process_index :: accelerator.num_processes]
    found: dict[int, Ids] = {}
    with engine.evaluating(), _greedy(engine, collator, longest) as model:
        # No collective is in here, so no rank waits for another. A sharded model (FSDP) has one in every
        # forward pass: its ranks would need equal numbers of batches, and `synced_gpus=True`.
        for start in range(0, len(own), size):
            part = own[start : start + size]
            found.update(zip(part, _generate(model, collator, part), strict=True))
    return found


def dry_run_generation(engine: Engine, collator: Collator, *, most: int, longest: int) -> int:
    """How many sequences to answer at once: at most `most`, in no more memory than training peaked at.

    The forward pass of a loss does not tell: a large vocabulary's logits take more than the cache of
    keys and values, those of a deep model less (0.2 B with 256 + 256 tokens in fp32: 60 MB of logits and
    their softmax, 31 MB of cache; a Llama of 7 B in bf16: 131 MB and 268 MB). So one sequence with the
    longest prompt and an answer of full length says what the cache takes, as much again is left for
    what a pass makes on the way, and the size is run once. One that does not fit is halved.
    """
    memory = engine.memory
    highest = memory.peak()
    with engine.evaluating():
        each = 2 * _fill_cache(engine, collator, 1, longest)
        if not memory.caches:  # what is freed counts at once, after this
            gc.collect()
            memory.release_cached()
        size = max(1, min(most, (highest - memory.allocated()) // each))
        while True:
            try:
                _fill_cache(engine, collator, size, longest)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            else:
                return size
            size //= 2
            gc.collect()


@contextmanager
def _greedy(engine: Engine, collator: Collator, longest: int) -> Iterator[PreTrainedModel]:
    """The model, set to answer greedily: what its maker set (beams, a forced first token) stays out."""
    model = engine.unwrapped
    before = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        use_cache=True,  # training set the model's own to False
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        eos_token_id=collator.encoder.eos,
        pad_token_id=collator.encoder.pad,
    )
    try:
        yield model
    finally:
        model.generation_config = before


def _generate(model: PreTrainedModel, collator: Collator, rows: Sequence[int]) -> Iterator[Ids]:
    """The answer to each row, up to its end."""
    encoder = collator.encoder
    prompts, mask = _prompts([collator.store.source(row) for row in rows], collator)
    generate: Any = model.generate
    output = generate(input_ids=prompts.to(model.device), attention_mask=mask.to(model.device))
    begin = prompts.shape[1] if encoder.is_causal else 1  # behind the prompt, or the start token
    for ids in output[:, begin:].cpu().numpy():  # (answer,)
        ends = np.flatnonzero(ids == encoder.eos)
        yield ids[: ends[0]] if len(ends) else ids


def _fill_cache(engine: Engine, collator: Collator, size: int, longest: int) -> int:
    """Bytes of keys and values behind the longest prompt and an answer of full length, `size` times."""
    store = collator.store
    model: Any = engine.unwrapped
    source = store.source(store.stats.longest_source[0])
    answered = np.full(longest, source[0], dtype=np.int64)
    if collator.encoder.is_causal:
        source = np.concatenate([source, answered])
    prompts, mask = (part.to(model.device) for part in _prompts([source] * size, collator))
    with engine.accelerator.autocast():
        if collator.encoder.is_causal:
            inputs = {"input_ids": prompts, "attention_mask": mask}
        else:
            encoded = model.get_encoder()(input_ids=prompts, attention_mask=mask)
            inputs = {
                "input_ids": torch.from_numpy(answered).to(model.device).expand(size, -1),
                "encoder_hidden_states": encoded.last_hidden_state,
                "encoder_attention_mask": mask,
            }
        cache = model.get_decoder()(**inputs, use_cache=True).past_key_values
    halves = (
        [cache]
        if collator.encoder.is_causal
        else [cache.self_attention_cache, cache.cross_attention_cache]
    )
    return sum(layer.keys.nbytes + layer.values.nbytes for half in halves for layer in half.layers)


def _prompts(sequences: Sequence[npt.NDArray[Any]], collator: Collator) -> tuple[Tensor, Tensor]:
    """(ids, mask), each (batch, prompt).

    A causal model's are padded on the left, since its answers begin where prompts end; an encoder's on
    the right, since BART counts positions from the left whatever the mask.
    """
    longest = max(map(len, sequences))
    ids = np.full((len(sequences), longest), collator.encoder.pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = (
            slice(longest - len(sequence), None)
            if collator.encoder.is_causal
            else slice(len(sequence))
        )
        ids[row, place] = sequence
        mask[row, place] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
