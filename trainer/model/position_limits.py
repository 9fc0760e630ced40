"""How long a sequence a model takes: one that looks positions up in a table has none beyond it.

Models with rotary or relative positions (Llama, Qwen, T5) take any length; GPT-2, OPT and BART do not, and
would fail in the middle of a step with an index out of range.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from autotune.errors import UsageError
from trainer.batching.collator import Collator

TABLES = ("wpe", "embed_positions", "position_embeddings", "positions_embed")
"""What transformers calls such a table."""


def positions(part: nn.Module) -> int | None:
    """Tokens of the longest sequence that this model, encoder or decoder takes; None where nothing bounds it."""
    tables = [
        module
        for name, module in part.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in TABLES
    ]
    return min((len(table.weight) - _unused(table) for table in tables), default=None)


def _decoder(model: Any) -> nn.Module:
    part: nn.Module = model.get_decoder()
    return part


def _unused(table: nn.Embedding) -> int:
    """Rows at the beginning that no position has: BART and OPT name them, RoBERTa counts from its padding."""
    offset: int = getattr(table, "offset", 0)
    return offset if table.padding_idx is None else table.padding_idx + 1


def check_positions(model: PreTrainedModel, collator: Collator) -> None:
    """Raises UsageError where a row has more tokens than the model takes."""
    bounds: dict[str, tuple[int, int | None]] = {}
    if collator.encoder.is_causal:
        bounds["--max-source-length and --max-target-length together"] = (
            collator.longest()[0],
            positions(model),
        )
    else:
        source, target = collator.longest()
        bounds["--max-source-length"] = (source, positions(model.get_encoder()))
        bounds["--max-target-length"] = (target, positions(_decoder(model)))
    for flag, (longest, most) in bounds.items():
        if most is not None and longest > most:
            raise UsageError(
                f"the longest sequence of the data has {longest} tokens, and the model takes {most}",
                f"lower {flag} to {most} at most",
            )


def room_for_answers(model: PreTrainedModel, collator: Collator) -> int | None:
    """Tokens that an answer to any row may have; None where nothing bounds it."""
    most = positions(_decoder(model))
    if most is None or not collator.encoder.is_causal:
        return most
    return most - collator.store.longest()[0]
