"""`--fresh`: the old run is moved aside, and removed once the new one has saved something; until then it can come back.

Each state is the name of one hidden folder, so that a kill at any moment leaves what `settle` completes:

.aside       the old run, as long as the new one has saved nothing; its run.json is moved last
.returning   the old run on its way back; what the new one had begun is removed
.replaced    the old run, to be removed: the new one has saved something
"""

from pathlib import Path

from autotune import files
from trainer.artifacts import own_files

ASIDE, RETURNING, REPLACED = ".aside", ".returning", ".replaced"
COPIED = ("run.toml", "profile.toml")
"""The new run may read them: `--config run.toml --fresh`."""


def move_aside(folder: Path) -> None:
    """Moves the run out of the way of a new one.

    Raises:
        OSError: the folder cannot be written.
    """
    settle(folder, has_saved=False)
    aside = folder / ASIDE
    aside.mkdir()
    names = own_files.names_of(folder)
    for name in COPIED:
        try:
            content = files.read_small(folder / name)
        except OSError:  # none, a link, a pipe, or no run file by its size
            continue
        (aside / name).write_bytes(content)
    own_files.move([name for name in names if name not in COPIED], folder, aside)


def settle(folder: Path, *, has_saved: bool) -> str | None:
    """Removes the old run if the new one has saved something, else puts it back; a line where the user must know.

    Raises:
        OSError: the folder cannot be written.
    """
    aside, returning, replaced = (folder / name for name in (ASIDE, RETURNING, REPLACED))
    said = None
    for path in (aside, returning, replaced):
        if path.is_symlink():  # none of ours
            path.unlink()
    if aside.is_dir():
        if not (aside / own_files.RECORD).exists():  # a kill while it was moved
            for name in COPIED:
                files.remove(aside / name)
            aside.rename(returning)
        elif has_saved:
            aside.rename(replaced)
        else:
            own_files.discard(folder)
            for name in COPIED:  # without a record they are not known to be a run's
                if (aside / name).exists():
                    files.remove(folder / name)
            aside.rename(returning)
            said = f"the run in {folder} is back: the new one had saved nothing"
    if returning.is_dir():
        own_files.move([path.name for path in returning.iterdir()], returning, folder)
        returning.rmdir()
    if replaced.is_dir():
        own_files.discard(replaced)
        if any(replaced.iterdir()):
            kept = replaced.rename(files.free_name(folder / own_files.KEPT))
            said = f"{kept} has what was among the old run's files and is not the run's"
        else:
            replaced.rmdir()
    return said
