"""Profiles: what a file may say, and how files are found and written."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import profiles
from autotune.errors import OutputError, PlanError, ProfileError, shown
from autotune.plan import MAX_WORLD_SIZE
from autotune.verdict import Verdict
from profiles.schema import (
    BatchSection,
    Fingerprint,
    MemorySection,
    Profile,
    RunSection,
    TrialRow,
    parse,
)
from profiles.store import FOLDER, check_name, check_place, free_path
from tests.support.processes import printed_by
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve

BATCH = """\
schema = 1
[batch]
micro_batch_size = 8
gradient_accumulation_steps = 2
effective_batch_size = 16
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(name: str | Path) -> ProfileError:
    """Why that profile is not loaded."""
    with pytest.raises(ProfileError) as caught:
        profiles.load(str(name))
    return caught.value


def small(micro_batch: int = 8) -> Profile:
    return Profile(
        schema=1,
        batch=BatchSection(
            micro_batch_size=micro_batch,
            gradient_accumulation_steps=16 // micro_batch,
            effective_batch_size=16,
        ),
    )


# --- the schema


def every_profile() -> st.SearchStrategy[Profile]:
    """Any profile whose sums add up."""
    amounts = st.none() | st.integers(0, 2**62)
    shares = st.none() | st.floats(0, 1, exclude_min=True)
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
    memory = st.builds(
        MemorySection, target_vram=shares, target_ram=shares, budget_bytes=amounts, peak_bytes=amounts,
        hard_limit_bytes=amounts,
    )  # fmt: skip
    run = st.builds(
        RunSection,
        model=st.none() | names,
        data=st.none() | st.lists(names, max_size=3),
        precision=st.sampled_from([None, "fp32", "bf16", "fp16"]),
        gradient_checkpointing=st.booleans(),
        environment=st.dictionaries(texts, texts, max_size=3),
    )
    trials = st.lists(
        st.builds(
            TrialRow,
            size=st.integers(1, 4096),
            sizes=st.none() | st.lists(st.integers(1, 4096), min_size=1, max_size=4),
            verdict=st.sampled_from(["fits", "over", "oom"]),
            peak_bytes=amounts,
            seconds=st.floats(0, 1e6),
            speed_spread=st.none() | st.floats(0, 10),
            reason=st.none() | texts,
        ),
        max_size=4,
    )

    @st.composite
    def drawn(draw: st.DrawFn) -> Profile:
        sizes = draw(st.lists(st.integers(1, 64), min_size=1, max_size=8))
        pieces = draw(st.integers(1, 64))
        return Profile(
            schema=1,
            interrupted=draw(st.booleans()),
            batch=BatchSection(
                micro_batch_size=max(sizes),
                micro_batch_sizes=sizes if len(set(sizes)) > 1 else None,
                gradient_accumulation_steps=pieces,
                effective_batch_size=pieces * sum(sizes),
                eval_batch_size=draw(st.none() | st.integers(1, 4096)),
            ),
            memory=draw(memory),
            run=draw(run),
            fingerprint=Fingerprint(world_size=len(sizes), model=draw(st.none() | texts)),
            trial=draw(trials),
        )

    return drawn()


@given(every_profile())
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, profile: Profile
) -> None:
    """Every value, whatever the texts hold."""
    path = tmp_path_factory.mktemp("profiles") / "p.toml"

    profiles.save(profile, path)

    assert profiles.load(str(path)) == profile


UNEVEN = """\
schema = 1
[batch]
micro_batch_size = 5
micro_batch_sizes = [5, 2]
gradient_accumulation_steps = 3
effective_batch_size = 16
[fingerprint]
world_size = 2
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # a key: the nearest, also ahead of the key that it leaves missing, else all of its table
        (f"{BATCH}[memroy]", ": unknown key 'memroy'; did you mean 'memory'?"),
        (BATCH.replace("micro_batch_size", "micro_batch_sise"),
         ": unknown key 'batch.micro_batch_sise'; did you mean 'micro_batch_size'?"),
        (f"{BATCH}[[trial]]\nsize = 1\nverdict = 'fits'\nsecond = 1.0",
         ": unknown key 'trial.0.second'; did you mean 'seconds'?"),
        (f"{BATCH}zzz = 1",
         ": unknown key 'batch.zzz'; known here: micro_batch_size, micro_batch_sizes, "
         "gradient_accumulation_steps, effective_batch_size, base_effective_batch_size, eval_batch_size"),
        # a value: a number in quotes is not a number, 1 is not true, and nothing is infinite
        (f"{BATCH}[run]\nprecision = 'bf17'", ": 'run.precision' is 'bf17': input should be 'fp32', 'bf16' or 'fp16'"),
        (f"{BATCH}[run]\ngradient_checkpointing = 1", ": 'run.gradient_checkpointing' is 1: input should be a valid boolean"),
        (f"{BATCH}[memory]\ntarget_vram = 1.5", ": 'memory.target_vram' is 1.5: input should be less than or equal to 1"),
        (f"{BATCH}[memory]\ntarget_vram = nan", ": 'memory.target_vram' is nan: input should be a finite number"),
        (f"{BATCH}[memory]\npeak_bytes = '2GiB'", ": 'memory.peak_bytes' is '2GiB': input should be a valid integer"),
        (f"{BATCH}[[trial]]\nsize = 1\nverdict = 'fits'\nseconds = inf", ": 'trial.0.seconds' is inf: input should be a finite number"),
        (f"{BATCH}[[trial]]\nsize = 1\nverdict = 'fit'\nseconds = 1.0", ": 'trial.0.verdict' is 'fit': input should be 'fits', 'over' or 'oom'"),
        (f"{BATCH}[memory]\nhard_limit_bytes = -1", ": 'memory.hard_limit_bytes' is -1: input should be greater than or equal to 0"),
        (f"{BATCH}[[trial]]\nsize = 1\nsizes = [1, 0]\nverdict = 'fits'\nseconds = 1.0", ": 'trial.0.sizes.1' is 0: input should be greater than or equal to 1"),
        (f"{BATCH}eval_batch_size = 0", ": 'batch.eval_batch_size' is 0: input should be greater than or equal to 1"),
        (f"{BATCH}[fingerprint]\nworld_size = 0", ": 'fingerprint.world_size' is 0: input should be greater than or equal to 1"),
        # bounds: no count, amount or speed makes the arithmetic overflow
        (BATCH.replace("batch_size = 16", f"batch_size = {2**31}"),
         ": 'batch.effective_batch_size' is 2147483648: input should be less than 2147483648"),
        (f"{BATCH}[fingerprint]\nworld_size = 65537",
         ": 'fingerprint.world_size' is 65537: input should be less than or equal to 65536"),
        (f"{BATCH}[fingerprint]\nworld_size = true", ": 'fingerprint.world_size' is True: input should be a valid integer"),
        (f"{BATCH}[run]\nloader_workers = 100000", ": 'run.loader_workers' is 100000: input should be less than or equal to 1024"),
        (f"{BATCH}[run]\nmodel = 'm'\ndata = [\"a\\u0000\"]", ": 'run.data.0' is 'a\\x00': a name has no NUL character"),
        (f"{BATCH}[memory]\nshares = [0.1, 0.2, 0.3]",
         ": 'memory.shares' is [0.1, 0.2, 0.3]: list should have at most 2 items after validation, not 3"),
        (f"{BATCH}[[trial]]\nsize = 1\nverdict = 'fits'\nseconds = 1.0\nsamples_per_second = 1e-300",
         ": 'trial.0.samples_per_second' is 1e-300: input should be greater than or equal to 0.000001"),
        (f"{BATCH}[[trial]]\nsize = 1\nverdict = 'fits'\nseconds = -1.0",
         ": 'trial.0.seconds' is -1.0: input should be greater than or equal to 0"),
        # the schema: only the number 1
        (BATCH.replace("schema = 1", "schema = true"), ": 'schema' is True: it should be 1"),
        (BATCH.replace("schema = 1", "schema = 1.0"), ": 'schema' is 1.0: it should be 1"),
        (BATCH.replace("schema = 1", "schema = []"), ": 'schema' is []: it should be 1"),
        (BATCH.replace("schema = 1", "schema = -1"), ": 'schema' is -1: input should be 1"),
        # a long value or key is shortened
        (f"schema = 1\nbatch = '{'x' * 10**6}'",
         f": 'batch' is '{'x' * 79} … {'x' * 19}': it should be a table, [batch]"),
        (f"schema = 1\n{'x' * 10**6} = 1",
         f": unknown key '{'x' * 79} … {'x' * 19}'; known here: schema, interrupted, batch, memory, run, "
         "fingerprint, trial"),
        # the shape of the file; a future schema ahead of its keys
        ("schema = ", " is not TOML: Invalid value (at line 1, column 10); fix it, or tune again"),
        ("\xff\xfe", " is not TOML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start "
         "byte; fix it, or tune again"),
        ("schema = 1\nbatch = 3", ": 'batch' is 3: it should be a table, [batch]"),
        ("", ": 'schema' is missing; `chatlm profiles show fast` prints a whole profile"),
        ("schema = 2\nnew = 1", " has schema 2, this version reads up to 1; update chatlm, or tune again"),
        # the arithmetic, with all its numbers
        (BATCH.replace("steps = 2", "steps = 3"),
         ": gradient_accumulation_steps is 3, but an effective batch of 16 cut into micro-batches of 8 "
         "on 1 process(es) takes 2; fix one of the three, or leave the file and train with --micro-batch"),
        (BATCH.replace("size = 8", "size = 17"),
         ": micro-batch 17 is larger than one device's share of the effective batch: 16 over 1 process "
         "is 16; use --micro-batch 16 or less, or tune with a larger --effective-batch"),
        (UNEVEN.replace("world_size = 2", "world_size = 3"),
         ": micro_batch_sizes has 2 sizes, but the fingerprint's world_size is 3; give one for each "
         "process, or leave the list out"),
        (UNEVEN.replace("size = 5", "size = 6"),
         ": micro_batch_size is 6, but the largest of micro_batch_sizes is 5; make them agree, or "
         "leave the list out"),
        (UNEVEN.replace("steps = 3", "steps = 2"),
         ": gradient_accumulation_steps is 2, but an effective batch of 16 cut into micro-batches of "
         "5 + 2 on 2 process(es) takes 3; fix one of the three, or leave the file and train with "
         "--micro-batch"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_what_should_be_there(
    tmp_path: Path, text: str, message: str
) -> None:
    """After the path of the file."""
    path = tmp_path / "p.toml"
    path.write_text(f"{text}\n", encoding="latin-1")

    assert str(error_of(path)) == f"{path}{message}"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"{BATCH}[memroy]", "did you mean 'memory'?"),
        ("", "`chatlm profiles show fast` prints a whole profile"),
        (f"{BATCH}eval_batch_size = 0", None),
        (BATCH.replace("size = 8", "size = 17"),
         "use --micro-batch 16 or less, or tune with a larger --effective-batch"),
    ],
    ids=["misspelt", "missing", "a value", "arithmetic"],
)  # fmt: skip
def test_the_hint_of_a_fault_is_a_field_of_its_own(
    tmp_path: Path, text: str, hint: str | None
) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f"{text}\n")

    assert error_of(path).hint == hint


VALUES = (
    "1", "0", "-1", "65537", str(2**31), str(2**63 - 1), str(2**63), "1e308", "1e999", "nan", "5e-324", "true",
    "''", "'x'", '"\\u0000"', '"\\u001b[2J"', '"a\\nb"', f"'{'x' * 5000}'", "[]", "[1]", "['a']", "[[]]", "{}",
    "{a = 1}", "2020-01-01", "12:00:00", "9" * 5000, f"0x{'f' * 5000}", f"{'[' * 500}{']' * 500}", "'*/*'",
    "[5, 2]", "[0.0, 0.0]", "'fits'", "'fp16'", "]", "\0", "\x1b", "\r", "'''",
)  # fmt: skip
"""What may stand behind a key."""


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(VALUES)), min_size=1, max_size=3),
    st.none() | st.integers(0, 400),
)
def test_a_profile_of_any_values_is_used_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, str]], end: int | None
) -> None:
    """Its lines changed, and perhaps cut; what is loaded can be computed with."""
    text = f"{UNEVEN}longest_source = 9\nlongest_target = 9\n[memory]\nshares = [0.1, 0.9]"
    lines = text.split("\n")
    for number, value in changes:
        key = lines[number % len(lines)].partition("=")[0] or "a"
        lines[number % len(lines)] = f"{key}= {value}"
    path = tmp_path_factory.mktemp("profiles") / "p.toml"
    path.write_bytes("\n".join(lines).encode()[:end])

    said = ""
    try:
        profile = profiles.load(str(path))
    except ProfileError as error:
        said = str(error)
    else:
        profile.knee(), profile.overhead(), profile.plan(1, 1)

    assert said.isprintable()
    assert len(said) < 1000


def test_each_device_may_have_its_own_size(tmp_path: Path) -> None:
    """On another number of devices the smallest is safe; the user's own size is for all."""
    path = tmp_path / "p.toml"
    path.write_text(UNEVEN)

    profile = profiles.load(str(path))

    assert profile.plan(2).sizes == (5, 2)
    assert profile.plan(2).shares == (11, 5)
    assert profile.plan(1).sizes == (2,)
    assert profile.plan(3).sizes == (2, 2, 2)
    assert profile.plan(2, micro_batch=4).sizes == (4, 4)


def tried(*rows: tuple[int | list[int], str, float | None]) -> Profile:
    """A profile with trials of (size, or one a device; verdict; samples per second)."""
    trial = [
        TrialRow(
            size=size if isinstance(size, int) else max(size),
            sizes=None if isinstance(size, int) else size,
            verdict=Verdict(verdict), seconds=1.0, samples_per_second=speed,
        )
        for size, verdict, speed in rows
    ]  # fmt: skip
    return small().model_copy(update={"trial": trial})


@pytest.mark.parametrize(
    ("rows", "knee"),
    [
        ([(16, "fits", 100), (1, "fits", 40), (4, "fits", 97), (32, "over", 200)], (4, None)),
        # two trials of one largest size are two sizes; the smaller sum is the smaller one
        ([([8, 2], "fits", 99), ([8, 6], "fits", 100), ([8, 1], "fits", 50)], (8, [8, 2])),
    ],
)
def test_the_knee_is_the_smallest_size_within_3_percent_of_the_best_speed(
    rows: list[tuple[int | list[int], str, float | None]], knee: tuple[int, list[int] | None]
) -> None:
    """Of what fits: a size over the budget may be faster, but cannot be had."""
    found = tried(*rows).knee()

    assert found is not None
    assert (found.size, found.sizes) == knee


def test_one_speed_has_no_knee() -> None:
    """Nor has a preset, which measured nothing."""
    assert small().knee() is None
    assert tried((4, "fits", 97), (8, "fits", None), (16, "oom", 120)).knee() is None


def test_the_same_effective_batch_is_cut_for_any_number_of_devices() -> None:
    """Until there are more devices than samples."""
    profile = small(8)

    assert profile.plan(1).accumulation == 2
    assert profile.plan(2).accumulation == 1
    assert profile.plan(2, micro_batch=3).accumulation == 3
    with pytest.raises(PlanError, match=r"16 over 4 processes is 4; use --micro-batch 4 or less"):
        profile.plan(4)
    with pytest.raises(PlanError, match=r"effective batch 16 is smaller than 17 processes"):
        profile.plan(17, micro_batch=1)


def test_unknown_tables_of_a_document_are_named_by_its_source() -> None:
    """`parse` is told what to call it."""
    document: dict[str, Any] = {"schema": 1, "bach": {}}

    with pytest.raises(ProfileError, match=r"preset x: unknown key 'bach'; did you mean 'batch'\?"):
        parse(document, "preset x")


# --- the store


def test_presets_are_known_in_any_folder(folder: Path) -> None:
    """They are part of the package, and each is whole."""
    assert profiles.names() == ["fast", "small", "standard"]
    assert [profiles.load(name).batch.effective_batch_size for name in profiles.names()] == [
        32, 16, 240,
    ]  # fmt: skip
    assert list(folder.iterdir()) == []


def test_the_users_own_profiles_come_first(folder: Path) -> None:
    """By name as well: one that is called as a preset stands for it."""
    profiles.save(small(), FOLDER / "tuned.toml")
    profiles.save(small(2), FOLDER / "small.toml")

    names = profiles.names()

    assert names == ["small", "tuned", "fast", "standard"]
    assert profiles.load("small").batch.micro_batch_size == 2


def test_a_path_comes_before_a_name(folder: Path) -> None:
    """Wherever it points."""
    profiles.save(small(4), folder / "fast")
    profiles.save(small(2), folder / "far" / "away.toml")

    assert profiles.load("fast").batch.micro_batch_size == 4
    assert profiles.load("far/away.toml").batch.micro_batch_size == 2


@pytest.mark.parametrize(
    ("saved", "name", "hint"),
    [
        (["tuned"], "tunde", "did you mean tuned?"),
        (["tuned"], "profiles/tunde.toml", "did you mean tuned?"),
        # `train` asks for `tuned` unless told otherwise
        ([], "tuned", "there are fast, small, standard, and `chatlm autotune` makes one"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_all(
    saved: list[str], name: str, hint: str, folder: Path
) -> None:
    """And with how to make one."""
    for own in saved:
        profiles.save(small(), FOLDER / f"{own}.toml")

    assert str(error_of(name)) == f"no profile {name!r}; {hint}"


def test_the_largest_counts_of_a_profile_can_be_computed_with() -> None:
    """Nothing overflows, and no list of 65,536 sizes is made for each trial."""
    most, world = 2**31 - 1, MAX_WORLD_SIZE
    speeds = [(1, 1e-6), (most, 1e12), (2, 1e12), (3, 1e-6)]
    profile = Profile(
        schema=1,
        batch=BatchSection(
            micro_batch_size=1,
            gradient_accumulation_steps=-(-most // world),
            effective_batch_size=most,
            base_effective_batch_size=1,
        ),
        memory=MemorySection(shares=[1e308, 5e-324], target_vram=5e-324),
        fingerprint=Fingerprint(world_size=world, longest_source=most, longest_target=most),
        trial=[
            TrialRow(size=size, verdict=Verdict.FITS, seconds=1e9, samples_per_second=speed)
            for size, speed in speeds * 1000
        ],
    )

    knee, overhead = profile.knee(), profile.overhead()
    settings = resolve(
        profile, TrainOptions(scale_lr="linear", micro_batch=1), device="cpu", world_size=world
    )

    assert knee is not None
    assert knee.size == 2
    assert overhead is not None
    assert math.isfinite(overhead)
    assert math.isfinite(settings.rate_scale)


def test_a_name_that_no_file_can_have_is_refused(folder: Path) -> None:
    """With the system's reason."""
    with pytest.raises(ProfileError, match=r"cannot read the profile x+: File name too long"):
        profiles.load("x" * 300)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "/a", "a\nb", "\x1b[2J", "a\0", "é" * 101]
)
def test_a_profile_is_named_by_a_plain_word(name: str) -> None:
    """It stays in the folder of profiles and is seen there."""
    with pytest.raises(ProfileError) as caught:
        check_name(name)

    assert str(caught.value) == f"{shown(name)} cannot name a profile; use a plain word like tuned"
    assert check_name("tuned-2.b") == "tuned-2.b"


def test_a_profile_is_replaced_whole(folder: Path) -> None:
    """Nothing else is left in the folder, and others may read it."""
    path = FOLDER / "tuned.toml"

    profiles.save(small(2), path)
    profiles.save(small(4), path)

    assert profiles.load("tuned").batch.micro_batch_size == 4
    assert [file.name for file in FOLDER.iterdir()] == ["tuned.toml"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_profile_that_cannot_be_written_leaves_the_old_one(folder: Path) -> None:
    """A disk that is full in the middle of the file: here a limit on the size of files."""
    profiles.save(small(2), FOLDER / "tuned.toml")
    script = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "import profiles\n"
        "from autotune.errors import OutputError\n"
        "profile = profiles.load('fast')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "try:\n"
        "    profiles.save(profile, Path('profiles/tuned.toml'))\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )

    assert printed_by(script) == (
        "cannot write the profile profiles/tuned.toml: File too large; free some space, or run in "
        "a folder that you can write to\n"
    )
    assert profiles.load("tuned").batch.micro_batch_size == 2
    assert [file.name for file in FOLDER.iterdir()] == ["tuned.toml"]


@pytest.fixture
def unwritable(folder: Path) -> Iterator[Path]:
    """A place below a regular file: permission bits do not bind the superuser."""
    (folder / "file").touch()
    yield folder / "file" / "profiles" / "tuned.toml"
    assert (folder / "file").read_bytes() == b""


def test_a_place_that_cannot_be_written_is_found_before_the_search(unwritable: Path) -> None:
    """`save` would say the like, minutes later."""
    with pytest.raises(OutputError) as before:
        check_place(unwritable)
    with pytest.raises(OutputError) as after:
        profiles.save(small(), unwritable)

    assert str(before.value) == (
        f"cannot write to {unwritable.parent}: Not a directory; "
        f"run in a folder that you can write to"
    )
    assert str(after.value).startswith(f"cannot write the profile {unwritable}: Not a directory; ")


def test_a_folder_in_the_place_of_the_profile_is_found_before_the_search(folder: Path) -> None:
    """It could not be replaced."""
    path = FOLDER / "tuned.toml"
    path.mkdir(parents=True)

    with pytest.raises(OutputError) as caught:
        check_place(path)

    assert str(caught.value) == (
        "cannot write the profile profiles/tuned.toml: a folder is there; use another --name"
    )


def test_a_place_that_can_be_written_is_not_written(folder: Path) -> None:
    """A search that finds nothing leaves no folder behind."""
    check_place(FOLDER / "tuned.toml")

    assert list(folder.iterdir()) == []


def test_an_interrupted_tuning_is_written_beside_a_finished_profile(tmp_path: Path) -> None:
    """It replaces only what was interrupted itself, or is not there."""
    path = tmp_path / "tuned.toml"
    absent = free_path(path)
    path.write_text(BATCH.replace("schema = 1", "schema = 1\ninterrupted = true"))
    interrupted = free_path(path)
    path.write_text(BATCH)
    finished = free_path(path)

    assert absent == path
    assert interrupted == path
    assert finished == tmp_path / "tuned-interrupted.toml"
