"""Models with random weights and the bundled tokenizer, which need no download."""

from dataclasses import dataclass
from importlib import resources

BUNDLED_TOKENIZER = str(resources.files("trainer") / "assets/tokenizer")


@dataclass(frozen=True, slots=True)
class Preset:
    """A T5 shape with random weights; the decoder has as many layers as the encoder."""

    shape: dict[str, int]
    learning_rate: float
    vocabulary: int | None = None
    """None takes the bundled tokenizer's."""
    dropout: float = 0.1


MODEL_PRESETS = {
    "chatlm-0.2b": Preset(
        {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_layers": 10},
        learning_rate=3e-4, vocabulary=29298,
    ),
    "chatlm-tiny": Preset(
        {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4, "num_layers": 2},
        learning_rate=3e-3, dropout=0.0,  # so small a model does not overfit in minutes
    ),
}  # fmt: skip
