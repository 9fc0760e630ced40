"""Small models with random weights, saved as a user's model folder; their activations are smooth.

A ReLU's gradient jumps at zero: of millions of inputs a step, float32 rounds one to the other side now and
then, and the gradient of its weight is another. What is to be compared to 1e-5 needs a smooth one.
"""

from importlib import resources
from pathlib import Path
from typing import Any

KINDS = ("t5", "llama")


def save_small(kind: str, folder: Path) -> Path:
    """A T5 with gated GELU as mT5's, or a Llama, of a million parameters, with the bundled tokenizer."""
    import torch
    import transformers
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("trainer") / "assets/tokenizer"))
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    start: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model: Any
    match kind:
        case "t5":
            model = T5ForConditionalGeneration(
                T5Config(
                    vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_heads=4,
                    num_layers=2, num_decoder_layers=2, feed_forward_proj="gated-gelu",
                    dropout_rate=0.0, **start, **ends,
                )
            )  # fmt: skip
        case "llama":
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256,
                    num_hidden_layers=3, num_attention_heads=4,
                    bos_token_id=tokenizer.bos_token_id, **ends,
                )
            )  # fmt: skip
        case _:
            raise ValueError(f"no small model {kind!r}; there are {', '.join(KINDS)}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
