"""What got better or worse: result files against those in git, `python -m bench.compare [FILE…]`.

`bench.figures` says which figures are compared; a difference within a figure's own noise is `same`.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.busy import BUSY
from bench.commands import ROOT, git
from bench.figures import FIGURES, Document, Figure

RESULTS = Path("bench/results")
WIDTH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", choices=("", *FIGURES), default="")
    parser.add_argument("--against", default="HEAD", help="the commit of the old files")
    options = parser.parse_args()
    print(compare(options.files or tuple(FIGURES), options.against))


def compare(names: Sequence[str], against: str = "HEAD") -> str:
    """Plain text: a block for each of those files that is there."""
    found = ((name, in_folder(name), in_git(name, against)) for name in names)
    blocks = [block(name, new, old) for name, new, old in found if new is not None]
    return "\n".join(blocks) or "there are no result files"


def in_folder(name: str) -> Document | None:
    path = ROOT / RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def in_git(name: str, commit: str) -> Document | None:
    text = git("show", f"{commit}:{RESULTS / name}.json")
    return None if text is None else json.loads(text)


def block(name: str, new: Document, old: Document | None) -> str:
    """The file's heading and a line for each of its figures."""
    lines = [heading(name, new, old)]
    known = [figure for figure in FIGURES[name] if figure.read(new) or figure.read(old)]
    lines += [line(figure, new, old) for figure in known]
    return "\n".join(lines) + "\n"


def heading(name: str, new: Document, old: Document | None) -> str:
    """The file, how its figures came about, and how the old ones did."""
    said = f"{name}: {how(new)}"
    return said if old is None else f"{said} (old: {how(old)})"


def how(document: Document) -> str:
    """Minutes, commit, and how much others did meanwhile."""
    measured: Mapping[str, float] = document.get("measured", {})
    if not measured:
        return "load unknown"
    return (
        f"{measured['seconds'] / 60:.1f} min at {measured['code'] or 'no commit'}, others took "
        f"{measured['others_share']:.0%}"
    )


def was_busy(document: Document | None) -> bool:
    """Whether others took so much CPU that speeds tell little; False where the load is unknown."""
    measured = (document or {}).get("measured", {})
    return bool(measured.get("others_share", 0.0) > BUSY)


def line(figure: Figure, new: Document, old: Document | None) -> str:
    """`  what   old   new   new / old   verdict`."""
    now, before = figure.read(new), figure.read(old)
    shown = [(value and figure.kind.show(value[0])) or "-" for value in (before, now)]
    ratio = f"{now[0] / before[0]:.2f}" if now and before and before[0] else ""
    busy = figure.kind.is_speed and (was_busy(new) or was_busy(old))
    words = verdict(figure, now, before) + (", busy machine" if busy else "")
    return f"  {figure.what:<38}{shown[0]:>13}{shown[1]:>13}{ratio:>8}  {words}".rstrip()


def verdict(
    figure: Figure, now: tuple[float, float] | None, before: tuple[float, float] | None
) -> str:
    """`better`, `worse`, `same` within the noise of both, or why there is nothing to compare."""
    if now is None:
        return "not measured"
    if before is None:
        return "new"
    (value, noise), (old, old_noise) = now, before
    if math.isclose(value, old, rel_tol=1e-9) or abs(value - old) <= max(noise, old_noise) * abs(
        old
    ):
        return "same"
    return "better" if (value < old) == (figure.better == "less") else "worse"


if __name__ == "__main__":
    main()
