"""The lines of `chatlm profiles list`: one a profile, whatever each holds."""

from collections.abc import Iterator

from autotune.errors import ProfileError, named
from profiles.store import check_folder, load, names


def lines() -> Iterator[str]:
    """A line for each profile that can be named; for a faulty one, and for a closed folder, why."""
    for name in names():
        try:
            text = _figures(name)
        except ProfileError as error:
            text = str(error)
        yield f"{named(name):<16} {text}"
    try:
        check_folder()
    except ProfileError as error:
        yield str(error)


def _figures(name: str) -> str:
    profile = load(name)
    batch, world_size = profile.batch, profile.fingerprint.world_size
    return (
        f"micro-batch {profile.plan(world_size)!s:<5} "
        f"accumulation {batch.gradient_accumulation_steps:<4} "
        f"processes {world_size:<3} "
        f"effective batch {batch.effective_batch_size}"
        f"{'  (interrupted)' if profile.interrupted else ''}"
    )
