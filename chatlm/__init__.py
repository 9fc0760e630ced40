"""chatlm under one name: `from chatlm import find_micro_batch, tune_trainer`.

`python -m chatlm` is the command, `python -m chatlm.trainer` is what launchers start. The packages behind it
(`autotune`, `profiles`, `trainer`, `dashboard`, `cli`) have names that other distributions use too, so each
entry point first checks that those that it imports are chatlm's own.
"""

import sys
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


ROOT = str(Path(__file__).parents[1])
"""The folder that has chatlm and its parts."""


def check_parts(*names: str) -> None:
    """Finds these parts without importing them.

    Raises:
        ImportError: a part is missing, or another distribution's module or one of the user's stands in its
            place; the message names the file.
    """
    # the finder of an editable install comes after a folder `profiles` of the user's
    if ROOT not in sys.path:
        sys.path.append(ROOT)
    for name in names:
        found, is_ours = _find(name)
        if not is_ours:
            raise ImportError(
                f"the module {name} is not chatlm's: {found} is found in its place; remove it from PYTHONPATH or "
                f"the current folder, or uninstall the distribution that owns it and install chatlm anew, in an "
                f"environment of its own"
            )


def require_parts(*names: str) -> None:
    """Ends the process with 1 and the message where `check_parts` fails."""
    try:
        check_parts(*names)
    except ImportError as error:
        # as `autotune.terminal` does it, which may be shadowed; a folder's name may steer the terminal
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))
        sys.exit(f"chatlm: {text}")


def _find(name: str) -> tuple[str, bool]:
    """Where Python finds a part, and whether it is ours."""
    try:
        spec = find_spec(name)
    except ValueError:  # a stand-in in sys.modules
        return "a module without a file", False
    if spec is None or spec.origin is None:
        folders = () if spec is None else spec.submodule_search_locations or ()
        return ", ".join(folders) or "nothing", False
    try:
        return spec.origin, Path(spec.origin).read_bytes().startswith(MARK)
    except OSError:  # inside a zip file
        return spec.origin, False


def __getattr__(name: str) -> Any:
    """Imports on first use: `import chatlm` loads neither torch nor the tuner."""
    match name:
        case "find_micro_batch" | "Found":
            check_parts("autotune")
            from autotune import api

            return getattr(api, name)
        case "tune_trainer":
            check_parts("autotune")
            from autotune.integrations.transformers import tune_trainer

            return tune_trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
