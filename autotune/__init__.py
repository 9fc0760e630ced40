"""chatlm: find the micro-batch that holds a memory target.

`find_micro_batch` and its `Found` are for other people's training code. They are imported on first use,
since every command imports this package and few need them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.api import Found, find_micro_batch

__all__ = ["Found", "find_micro_batch"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autotune import api

    return getattr(api, name)
