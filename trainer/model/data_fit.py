"""Whether a model can take the data: its tables of tokens and of positions have so many rows.

A larger id fails inside a step with an index out of range, or on a GPU with an assertion of CUDA's.
Rotary and relative positions (Llama, Qwen, T5) take any length; GPT-2, OPT and BART have a table.
"""

from typing import Any

from torch import nn

from autotune.errors import UsageError
from trainer.batching.collator import Collator

TABLES = ("wpe", "embed_positions", "position_embeddings", "positions_embed")
"""transformers' names of position tables."""


def positions(part: nn.Module) -> int | None:
    """Tokens of the longest sequence that a model, encoder or decoder takes; None without a limit."""
    tables = [
        module
        for name, module in part.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in TABLES
    ]
    return min((len(table.weight) - _unused(table) for table in tables), default=None)


def _unused(table: nn.Embedding) -> int:
    """Unused rows at the start: BART and OPT have an `offset`, RoBERTa starts after its padding."""
    offset: int = getattr(table, "offset", 0)
    return offset if table.padding_idx is None else table.padding_idx + 1


def check_positions(model: Any, collator: Collator, *, data: str = "data") -> None:
    """Raises UsageError where a row has more tokens than the model takes."""
    if collator.encoder.is_causal:
        sides = {"--max-source-length and --max-target-length together": model}
    else:
        sides = {
            "--max-source-length": model.get_encoder(),
            "--max-target-length": model.get_decoder(),
        }
    for (flag, part), longest in zip(sides.items(), collator.longest(), strict=True):
        most = positions(part)
        if most is not None and longest > most:
            raise UsageError(
                f"the longest sequence of the {data} has {longest} tokens, and the model takes {most}",
                f"lower {flag} to {most} at most",
            )


def check_vocabulary(model: Any, collator: Collator, *, data: str = "data") -> None:
    """Raises UsageError where a token of the data, or the padding, is not in the model's vocabulary."""
    size = vocabulary_size(model)
    if size is None:
        return
    encoder = collator.encoder
    row, token = collator.store.stats.largest_id
    known = f"the model's embedding has {size:,} rows (ids 0 to {size - 1:,})"
    if token >= size:
        what = f"row {row + 1:,} of the {data} has the token id {token:,}"
    elif encoder.pad >= size:
        what = f"the padding token has the id {encoder.pad:,}"
    else:
        return
    tokens = len(encoder.tokenizer)
    raise UsageError(
        f"{what}, and {known}; the tokenizer has {tokens:,} tokens",
        f"use the tokenizer that belongs to the model, or enlarge the model: "
        f"model.resize_token_embeddings({tokens}), then save_pretrained",
    )


def vocabulary_size(model: Any) -> int | None:
    """Token ids that every table of the model has: embeddings of both sides and the output head."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    if model.config.is_encoder_decoder:
        tables.append(model.get_decoder().get_input_embeddings())
    weights = (getattr(table, "weight", None) for table in tables)
    return min((len(weight) for weight in weights if weight is not None), default=None)


def max_answer_tokens(model: Any, collator: Collator) -> int | None:
    """Tokens that an answer to any row may have; None without a limit."""
    most = positions(model.get_decoder())
    if most is None or not collator.encoder.is_causal:
        return most
    return most - collator.store.longest()[0]
