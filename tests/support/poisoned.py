"""A model with finite weights and no loss for some rows, and such rows."""

import json
from pathlib import Path
from typing import Any

from tests.support.runs import rows_file
from tests.support.tiny import tiny, tokenizer

ROWS = 32


def poisoned(folder: Path) -> Path:
    """A model without a loss for rows with 火: one embedding is so large that its norm overflows."""
    import torch
    import transformers as hf

    config = tiny("gpt2").config
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model: Any = hf.GPT2LMHeadModel(config)
    own = tokenizer()
    (token,) = own.encode("火", add_special_tokens=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = 3e38
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def rows_with_fire(path: Path, *bad: int) -> Path:
    """The rows of a file; those of these numbers, from 0, have the token without a loss."""
    lines = rows_file(path, ROWS).read_text().splitlines()
    for number in bad:
        lines[number] = json.dumps({"prompt": "火", "response": "答"})
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
