"""The closed choices that a profile records or a search depends on, each defined once."""

from typing import Literal

DeviceKind = Literal["cuda", "cpu"]
Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "adafactor", "adamw-8bit"]
Freeze = Literal["encoder"]
"""What is not trained."""
Loss = Literal["chunked", "logits"]
"""How the loss is computed: in chunks of tokens, or of all logits at once. Only memory and speed differ."""
Prefer = Literal["memory", "throughput"]
"""The answer of a search: the largest size that fits, or the smallest that is as fast as any."""
MODEL_PRESET_NAMES = ("chatlm-tiny", "chatlm-0.2b")
"""Models with random weights; also where a folder has such a name."""
