"""How long a sequence a model takes: one that looks positions up in a table has none beyond it.

Models with rotary or relative positions (Llama, Qwen, T5) take any length; GPT-2, OPT and BART do not, and
would fail in the middle of a step with an index out of range.
"""

from torch import nn
from transformers import PreTrainedModel

from autotune.errors import UsageError
from trainer.batches import Collator

TABLES = ("wpe", "embed_positions", "position_embeddings")
"""What transformers calls such a table."""


def positions(model: PreTrainedModel) -> int | None:
    """Tokens of the longest sequence that the model takes; None where nothing bounds it."""
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in TABLES
    ]
    # BART and OPT leave the first rows of theirs out
    return min((len(table.weight) - getattr(table, "offset", 0) for table in tables), default=None)


def check_positions(model: PreTrainedModel, collator: Collator) -> None:
    """Raises UsageError where a row has more tokens than the model takes."""
    most, longest = positions(model), max(collator.longest())
    if most is not None and longest > most:
        together = " together" if collator.codec.is_causal else ""
        raise UsageError(
            f"the longest sequence of the data has {longest} tokens, and the model takes {most}; lower "
            f"--max-source-length and --max-target-length to {most} at most{together}"
        )


def room_for_answers(model: PreTrainedModel, collator: Collator) -> int | None:
    """Tokens that an answer to any row may have; None where nothing bounds it."""
    most = positions(model)
    if most is None or not collator.codec.is_causal:
        return most
    return most - collator.store.longest()[0]
