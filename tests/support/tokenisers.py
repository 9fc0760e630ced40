"""The bundled tokenizer in the guises that other models' tokenizers have."""

import copy
from functools import cache
from importlib import resources
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TURNS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}[EOS]\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""As most templates are: each turn is added to those before it, and ends with a token."""
FORGETFUL = TURNS.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}",
)
"""As Qwen3's: of earlier answers the thinking is left out."""
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
"""As Gemma's."""


@cache
def _bundled() -> Any:
    return AutoTokenizer.from_pretrained(str(resources.files("trainer") / "assets/tokenizer"))


def tokenizer(template: str | None = None, **changes: Any) -> Any:
    """A copy of the bundled one, with that chat template."""
    own = copy.deepcopy(_bundled())
    own.chat_template = template
    for name, value in changes.items():
        setattr(own, name, value)
    return own


def byte_level(template: str, *, trim_offsets: bool) -> Any:
    """As GPT-2's with two merges, `ĠĠ` and `Ġw`; `trim_offsets` as GPT-NeoX's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate([*alphabet, "ĠĠ", "Ġw"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ"), ("Ġ", "w")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    own: Any = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[EOS]")  # type: ignore[no-untyped-call]
    own.chat_template = template
    return own
