"""`chatlm profiles list` and the names of profiles, beside whatever else lies in the folder."""

import os
from pathlib import Path

import pytest

import profiles
from autotune.errors import ProfileError
from profiles import listing
from profiles.store import FOLDER
from tests.support.odd_files import ODD_FILES as ODD
from tests.support.processes import printed_by

PRESETS = ["fast", "small", "standard"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of profiles: one good, one for each fault."""
    monkeypatch.chdir(tmp_path)
    profiles.save(profiles.load("small"), FOLDER / "tuned.toml")
    for name, (make, _) in ODD.items():
        make(FOLDER / f"{name}.toml")
    return FOLDER


def test_a_fault_in_one_profile_never_hides_the_others(folder: Path) -> None:
    """Each has its one line: its figures, or what is wrong."""
    lines = {line.split()[0]: line for line in listing.lines()}

    assert list(lines) == [*sorted([*ODD, "tuned"]), *PRESETS]
    assert lines["tuned"] == (
        "tuned            micro-batch 1     accumulation 8    processes 2   effective batch 16"
    )
    assert lines["pipe"] == (
        "pipe             cannot read the profile profiles/pipe.toml: it is a pipe, not a file"
    )
    assert lines["digits"] == (
        "digits           profiles/digits.toml has a number of more than 64 bits; fix it, or tune "
        "again"
    )
    for name, (_, reason) in ODD.items():
        assert reason[:60] in lines[name]


@pytest.mark.parametrize("kind", ODD)
def test_a_faulty_profile_is_named_and_does_not_stop_the_hints_of_others(
    folder: Path, kind: str
) -> None:
    """By its name and by its path."""
    for name in (kind, f"profiles/{kind}.toml"):
        with pytest.raises(ProfileError) as caught:
            profiles.load(name)
        assert ODD[kind][1][:60] in str(caught.value)
    with pytest.raises(ProfileError, match=r"no profile 'tunde'; did you mean tuned\?"):
        profiles.load("tunde")


def test_a_name_that_would_steer_the_terminal_is_shown_as_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile is one line, whatever its file is called."""
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir()
    (FOLDER / "a\n\x1b[2J.toml").write_text("schema = ")

    first, *_ = listing.lines()

    assert first.startswith(r"'a\n\x1b[2J'     'profiles/a\n\x1b[2J.toml' is not TOML: ")
    assert first.isprintable()


def test_a_folder_that_cannot_be_read_leaves_the_presets_and_is_named(tmp_path: Path) -> None:
    """Here a file stands there, and a link that leads to itself; a missing one is no fault."""
    script = "from profiles import listing; print(*listing.lines(), sep='\\n')"
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "profiles").touch()
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "profiles").symlink_to("profiles")

    said = {
        name: printed_by(f"import os; os.chdir({str(tmp_path / name)!r}); {script}").splitlines()
        for name in ("", "file", "loop")
    }

    assert [len(lines) for lines in said.values()] == [3, 4, 4]
    assert said["file"][-1] == "cannot read the folder profiles: Not a directory"
    assert said["loop"][-1] == "cannot read the folder profiles: Too many levels of symbolic links"


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind the superuser")
def test_a_profile_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profiles.save(profiles.load("small"), FOLDER / "closed.toml")
    (FOLDER / "closed.toml").chmod(0)

    first, *_ = listing.lines()

    assert first.endswith("cannot read the profile profiles/closed.toml: Permission denied")


def test_a_hint_names_no_more_than_twenty_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir()
    for number in range(100):
        (FOLDER / f"{number}.toml").touch()

    with pytest.raises(ProfileError) as caught:
        profiles.load("zzzzzz")

    assert str(caught.value).count(", ") == 20
    assert "fast, small, standard, and `chatlm autotune` makes one" in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_folder_or_a_broken_link_of_a_profiles_name_hides_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object
) -> None:
    """`tuned`, `fast`: folders of such names are common."""
    monkeypatch.chdir(tmp_path)
    assert callable(make)
    make(Path("fast"))

    assert profiles.load("fast").batch.effective_batch_size == 32
