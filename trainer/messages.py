"""How a training process tells what happens: JSON objects with a `type`, to whoever listens."""

from collections.abc import Callable, Mapping
from typing import Any

Say = Callable[[Mapping[str, Any]], None]
"""To the supervisor over the wire, or to standard output under a launcher of the user's own."""
