"""Who can get at the tokens of a user: folders of every owner and mode, and another user who tries."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.errors import OutputError
from tests.support.data_files import json_lines, pairs
from tests.support.tokenisers import tokenizer
from trainer.data.cache_folder import cache_folder, private_folder, remove
from trainer.data.encoder import Encoder
from trainer.data.token_store import TokenStore, open_store

ME, OTHER = 12345, 12346
"""User ids; a test that needs a second user must run as root."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
ENCODER = Encoder(tokenizer(), is_causal=False)


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tokenising imports late may lie where another user cannot look."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CHATLM_CACHE", str(folder / "cache"))
        opened(json_lines(folder, pairs(3)))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that all users can look into; pytest's own is closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="chatlm-test-"))
    folder.chmod(0o755)
    monkeypatch.setenv("CHATLM_CACHE", str(folder / "cache"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def as_user(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def owned(folder: Path, owner: int, mode: int) -> Path:
    folder.mkdir()
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    return folder


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def opened(path: Path) -> TokenStore:
    return open_store([str(path)], ENCODER, max_source=8, max_target=8)


# --- the rule


@needs_root
@pytest.mark.parametrize(
    ("owner", "mode", "inside"),
    [
        (ME, 0o700, ""),
        (ME, 0o755, ""),
        (ME, 0o775, f"user-{ME}"),
        (ME, 0o777, f"user-{ME}"),
        (ME, 0o1777, f"user-{ME}"),
        (0, 0o1777, f"user-{ME}"),
        (OTHER, 0o1777, f"user-{ME}"),
    ],
)
def test_stores_lie_where_nobody_else_can_write(
    place: Path, owner: int, mode: int, inside: str
) -> None:
    """In the folder itself, or in one of the user's own; the folder's mode stays as it is."""
    cache = owned(place / "cache", owner, mode)

    with as_user(ME):
        found = private_folder()

    assert found == cache / inside
    assert found.stat().st_uid == ME
    assert mode_of(cache) == mode
    if inside:
        assert mode_of(found) == 0o700


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(0, 0o777), (OTHER, 0o777), (0, 0o2777)])
def test_a_folder_in_which_others_can_rename_is_refused(place: Path, owner: int, mode: int) -> None:
    cache = owned(place / "cache", owner, mode)

    with as_user(ME), pytest.raises(OutputError) as caught:
        private_folder()

    assert str(caught.value) == (
        f"other users could rename your tokens in the token cache {cache} (mode {mode:04o}, of user "
        f"{owner}); set its sticky bit (chmod +t {cache}), or set CHATLM_CACHE to a folder of your own"
    )
    assert list(cache.iterdir()) == []


@needs_root
def test_a_folder_of_another_user_is_refused(place: Path) -> None:
    """Nothing can be made in it."""
    cache = owned(place / "cache", OTHER, 0o755)
    data = json_lines(place, pairs(3))

    with as_user(ME), pytest.raises(OutputError) as caught:
        opened(data)

    assert str(caught.value) == (
        f"cannot use the token cache {cache}: Permission denied; set CHATLM_CACHE to a folder of your "
        f"own"
    )


@needs_root
def test_the_superuser_leaves_a_users_cache_to_the_user(place: Path) -> None:
    """As `sudo chatlm train` in the user's home: its stores lie apart."""
    cache = owned(place / "cache", ME, 0o755)

    assert private_folder() == cache / "user-0"


def test_a_link_to_a_folder_is_followed_once(place: Path) -> None:
    """A user may keep the cache on another disk."""
    (place / "disk").mkdir()
    (place / "cache").symlink_to(place / "disk")

    assert private_folder() == place / "disk"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("nowhere"), "is a link to a missing folder"),
        (lambda path: path.symlink_to(path.name), "is a link to a missing folder"),
        (lambda path: path.write_text("precious"), "is not a folder"),
        (os.mkfifo, "is not a folder"),
    ],
    ids=["dangling link", "link to itself", "file", "pipe"],
)
def test_what_is_no_folder_is_refused(
    place: Path, make: Callable[[Path], object], said: str
) -> None:
    cache = place / "cache"
    make(cache)

    with pytest.raises(OutputError) as caught:
        private_folder()

    assert str(caught.value) == (
        f"the token cache {cache} {said}; set CHATLM_CACHE to a folder of your own"
    )
    assert [path.name for path in place.iterdir()] == ["cache"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_what_is_made_is_private_whatever_the_umask(
    place: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    """The folders above the cache too: who may rename one of them may rename the cache."""
    monkeypatch.setenv("CHATLM_CACHE", str(place / "a" / "b" / "cache"))
    data = json_lines(place, pairs(3))
    before = os.umask(umask)
    try:
        store = opened(data)
    finally:
        os.umask(before)

    assert {mode_of(folder) for folder in (place / "a").glob("**")} == {0o700}
    assert {mode_of(file) for file in store.folder.iterdir()} == {0o600}


def test_a_file_system_that_keeps_no_modes_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CIFS and exFAT, mounted for all users."""
    cache = place / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    (cache / f"user-{os.geteuid()}").mkdir()
    (cache / f"user-{os.geteuid()}").chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)

    with pytest.raises(OutputError) as caught:
        private_folder()

    assert str(caught.value) == (
        f"{cache}/user-{os.geteuid()} cannot be made private on its file system; set CHATLM_CACHE to a "
        f"folder of your own"
    )


def test_a_user_without_a_home_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that are started with some user id."""
    monkeypatch.delenv("CHATLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)

    with pytest.raises(OutputError) as caught:
        cache_folder()

    assert str(caught.value) == (
        "the token cache has no place: no home folder; set CHATLM_CACHE to a folder of your own"
    )


# --- another user


@needs_root
def test_another_user_can_neither_read_nor_rename_nor_remove_a_store(place: Path) -> None:
    """In a cache that all share, as in /tmp; the same data give each a store of their own."""
    owned(place / "cache", 0, 0o1777)
    data = json_lines(place, pairs(3))
    with as_user(ME):
        store = opened(data)
    before = {file.name: file.read_bytes() for file in store.folder.iterdir()}

    refused = []
    with as_user(OTHER):
        for attempt in (
            lambda: list(store.folder.iterdir()),
            lambda: (store.folder / "tokens.bin").read_bytes(),
            lambda: (store.folder / "tokens.bin").write_bytes(b""),
            lambda: (store.folder.parent / "new").touch(),
            lambda: store.folder.parent.rename(place / "cache" / "mine"),
            lambda: shutil.rmtree(store.folder.parent),
        ):
            with pytest.raises(PermissionError):
                attempt()
            refused.append(attempt)
        own = opened(data)

    assert len(refused) == 6
    assert own.folder != store.folder
    assert own.folder.name == store.folder.name
    assert {file.name: file.read_bytes() for file in store.folder.iterdir()} == before


@needs_root
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_place_that_another_user_took_is_not_used(place: Path, kind: str) -> None:
    """The name of a user's folder is known to all."""
    cache, victim = owned(place / "cache", 0, 0o1777), owned(place / "victim", ME, 0o755)
    taken = cache / f"user-{ME}"
    with as_user(OTHER):
        match kind:
            case "folder":
                taken.mkdir()
                taken.chmod(0o777)
                said = f"belongs to user {OTHER}, not to you (user {ME}); "
            case "link":
                taken.symlink_to(victim)
                said = "is not a folder; remove it, or "
            case _:
                taken.touch()
                said = "is not a folder; remove it, or "

    with as_user(ME), pytest.raises(OutputError) as caught:
        private_folder()

    assert str(caught.value) == f"{taken} {said}set CHATLM_CACHE to a folder of your own"
    assert list(victim.iterdir()) == []


@needs_root
def test_a_store_of_another_owner_is_neither_read_nor_removed(place: Path) -> None:
    """As root leaves one in a user's cache, or a copy of another user's."""
    data = json_lines(place, pairs(3))
    owned(place / "cache", ME, 0o755)
    with as_user(ME):
        store = opened(data)
    os.chown(store.folder, OTHER, OTHER)

    with as_user(ME), pytest.raises(OutputError) as caught:
        opened(data)

    assert str(caught.value) == (
        f"{store.folder} belongs to user {OTHER}, not to you (user {ME}); set CHATLM_CACHE to a folder "
        f"of your own"
    )
    assert (store.folder / "tokens.bin").exists()


def test_removing_a_link_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("precious")
    (tmp_path / "link").symlink_to("target")

    remove(tmp_path / "link")

    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "precious"
