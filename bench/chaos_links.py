"""Links and names that lead out of a run's folder: what they lead to is never changed."""

import json

from bench.chaos_case import Case, Strike, chain
from bench.chaos_judge import content
from bench.chaos_kills import KILLED, kill_rank, kill_supervisor
from bench.chaos_moments import BEFORE
from bench.chaos_place import EVERY, Place
from bench.chaos_signals import SIGNALS, signals

SAVED = Strike(
    done="SIGTERM, so that the run is half done", phase="stepping", act=signals(*SIGNALS["SIGTERM"])
)


def link_the_folder(place: Place) -> None:
    """The run's folder is a link to a real one elsewhere."""
    real = place.folder / "real"
    real.mkdir()
    place.output.symlink_to(real)


def is_still_a_link(place: Place) -> list[str]:
    return [] if place.output.is_symlink() else ["the folder is no link any more"]


def link_checkpoints(place: Place) -> None:
    """Every checkpoint is moved out of the folder, and a link stands in its place."""
    for path in place.output.glob("checkpoint-*"):
        target = place.outside / path.name
        path.rename(target)
        path.symlink_to(target)
    place.canary = content(place.outside)


def plant(name: str) -> Strike:
    """A link of that name in the run's folder, to a file that is not a run's."""

    def before(place: Place) -> None:
        file = place.output / name
        if file.exists():
            file.rename(place.folder / "kept")
        file.symlink_to(place.outside / "canary")

    def after(place: Place) -> None:
        (place.output / name).unlink(missing_ok=True)
        if (kept := place.folder / "kept").exists():
            kept.replace(place.output / name)

    return Strike(
        done=f"`{name}` is a link to a file outside", phase=BEFORE, codes=(1,), before=before,
        after=after,
    )  # fmt: skip


def plant_partial(place: Place) -> None:
    """Each half-made store of tokens that the command is going to write is a link to a folder outside."""
    for store in place.ground.cache.iterdir():
        if not store.name.startswith("."):
            place.cache.mkdir(exist_ok=True)
            (place.cache / f".partial-{store.name}").symlink_to(place.outside)


def unplant_partial(place: Place) -> None:
    for path in place.cache.glob(".partial-*"):
        if path.is_symlink():
            path.unlink()


def point_outside(place: Place) -> None:
    """A finished run whose record names files of the folder above, and others', as its model's."""
    place.copy_whole()
    record = place.output / "run.json"
    document = json.loads(record.read_text())
    known = {"bytes": (place.outside / "canary").stat().st_size, "crc32": 0}
    document["model"] |= {"..": known, "../outside/canary": known, "../outside": known}
    record.write_text(json.dumps(document))


CASES = (
    Case(
        name="links", run=chain, seconds=25, check=is_still_a_link,
        strikes=(
            Strike(
                done="the output folder is a link; SIGKILL of the command", phase="stepping",
                act=kill_supervisor, codes=(KILLED,), most_lost=EVERY, before=link_the_folder,
            ),
        ),
    ),
    Case(
        name="links", run=chain, seconds=30,
        strikes=(
            SAVED,
            Strike(
                done="every checkpoint is a link; SIGKILL of the worker", phase="saving",
                act=kill_rank(0), codes=(1,), most_lost=EVERY, before=link_checkpoints,
            ),
        ),
    ),
    Case(
        name="links", run=chain, seconds=30,
        strikes=(SAVED, plant("metrics.jsonl"), plant(".lock"), plant("run.json")),
    ),
    Case(
        name="links", run=chain, tokens=False, seconds=25,
        strikes=(
            Strike(
                done="half-made token stores are links to a folder outside", phase=BEFORE,
                codes=(0, 1), before=plant_partial, after=unplant_partial,
            ),
        ),
    ),
    Case(
        name="links", run=chain, seconds=25,
        strikes=(
            Strike(
                done="run.json names files outside as the model's, and `--fresh`", phase=BEFORE,
                codes=(0,), before=point_outside, flags=("--fresh",),
            ),
        ),
    ),
)  # fmt: skip
