"""chatlm under one name: `from chatlm import find_micro_batch, tune_trainer`.

`python -m chatlm` is the command, `python -m chatlm.trainer` is what launchers start. The packages behind it
(`autotune`, `profiles`, `trainer`, `dashboard`, `cli`) have names that other distributions use too, so each
entry point first checks that they are chatlm's own.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.api import Found, find_micro_batch
    from autotune.integrations.transformers import tune_trainer

__all__ = ["Found", "__version__", "find_micro_batch", "tune_trainer"]

__version__ = "0.1.0"

PARTS = ("autotune", "profiles", "trainer", "dashboard", "cli")
MARK = b'"""chatlm: '
"""The file of each part begins with this."""


def check_parts() -> None:
    """Finds each part without importing it.

    Raises:
        ImportError: a part is missing, or another distribution's module or a folder of the user's stands in its
            place; the message names the file.
    """
    for name in PARTS:
        spec = find_spec(name)
        file = None if spec is None else spec.origin
        if file is None or not Path(file).read_bytes().startswith(MARK):
            found = f"{file or 'nothing'} is found in its place"
            raise ImportError(
                f"the module {name} is not chatlm's: {found}; remove it from PYTHONPATH or the current folder, "
                f"or uninstall the distribution that owns it and install chatlm anew, in an environment of its own"
            )


def __getattr__(name: str) -> Any:
    """Imports on first use: `import chatlm` loads neither torch nor the tuner."""
    check_parts()
    match name:
        case "find_micro_batch" | "Found":
            from autotune import api

            return getattr(api, name)
        case "tune_trainer":
            from autotune.integrations.transformers import tune_trainer

            return tune_trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
