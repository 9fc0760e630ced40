"""The bundled tokenizer in the guises that other models' tokenizers have."""

import copy
from functools import cache
from importlib import resources
from typing import Any

from transformers import AutoTokenizer

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
