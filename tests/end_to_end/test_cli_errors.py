"""What a user is told when a choice, a file or a place is refused, by the real command.

Most is refused before a worker starts and is asked of `cli.main` in this process; what only a worker
can find is asked of the installed command.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import cli
from autotune.errors import DataError
from autotune.workers.group import WorkerGroup
from tests.support.command_toy import TOY
from tests.support.fake_nvml import FakeDriver, FakeGpu
from tests.support.runs import chosen, ended, run

NO_DRIVER = {"nvmlInitWithFlags": 9}
FAST = ("train", "--profile", "fast", "--device", "cpu")
ON_CPU = ("autotune", "--device", "cpu")
both = pytest.mark.parametrize("command", [("autotune",), ("train", "--profile", "fast")])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the command ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line of a refusal: exit 1, nothing on stdout, no traceback."""
        assert (self.code, self.out) == (1, ""), self
        assert self.err.startswith("chatlm: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("chatlm: ").rstrip("\n")


Chatlm = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's current folder, with one good data file and nothing else."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"prompt": "问", "response": "答"}\n' * 16)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


@pytest.fixture
def chatlm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Chatlm:
    """The command in this process; it fails the test where a worker would start."""
    monkeypatch.setattr(WorkerGroup, "__init__", _no_worker)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["chatlm", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


def _no_worker(*_: object, **__: object) -> None:
    raise AssertionError("a worker was started")


def installed(*arguments: str) -> Outcome:
    """The command as a process of its own, with its workers."""
    command = [sys.executable, "-P", "-m", "cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def left() -> set[str]:
    """What stands in the current folder beside the data and the logs."""
    return {path.name for path in Path().iterdir() if path.suffix != ".jsonl"} - {"logs"}


# --- settings


@pytest.mark.parametrize("option", ["--target-vram", "--target-ram"])
@pytest.mark.parametrize("value", ["0", "-0.5", "1.01", "60", "nan", "inf"])
def test_a_fraction_outside_its_range_is_refused(chatlm: Chatlm, option: str, value: str) -> None:
    """Percent are not a fraction."""
    assert chatlm("autotune", option, value).message == (
        f"{option} {value} is not a share of memory; give a fraction above 0 and at "
        f"most 1, like 0.6 for 60 %"
    )
    assert left() == set()


def test_a_limit_in_an_unknown_unit_is_refused(chatlm: Chatlm) -> None:
    """With how to write one."""
    assert chatlm("autotune", "--vram-limit", "20XB").message == (
        "'20XB' is not an amount of memory; write it like 20GiB or 512MB"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("autotune", "--target-vram", "much"),
        ("autotune", "--effective-batch", "0"),
        ("autotune", "--device", "tpu"),
        ("autotune", "--max-source-length", "1"),
        ("autotune", "--unknown"),
        ("train", "--epochs", "all"),
        ("train", "--checkpoint-every", "0"),
        ("nothing",),
    ],
)
def test_a_flag_that_cannot_be_parsed_is_a_usage_error(
    chatlm: Chatlm, arguments: tuple[str, ...]
) -> None:
    """Exit 2, which says that the command line is wrong."""
    ended = chatlm(*arguments)

    assert (ended.code, ended.out) == (2, "")
    assert "Error" in ended.err
    assert "Traceback" not in ended.err
    assert left() == set()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epochs", "0", "--epochs 0 is out of range; give a number above 0, at most 1,000,000"),
        ("--epochs", "nan", "--epochs nan is out of range; give a number above 0, at most 1,000,000"),
        ("--epochs", "inf", "--epochs inf is out of range; give a number above 0, at most 1,000,000"),
        ("--max-steps", "0", "--max-steps 0 is out of range; give 1 or more"),
        ("--dropout", "1", "--dropout 1 is out of range; give 0 or more and less than 1"),
        ("--dropout", "nan", "--dropout nan is out of range; give 0 or more and less than 1"),
        ("--learning-rate", "0", "--learning-rate 0 is out of range; give a number above 0"),
        ("--learning-rate", "nan", "--learning-rate nan is out of range; give a number above 0"),
        ("--seed", "-1", "--seed -1 is out of range; give 0 to 2^63 - 1"),
        ("--num-processes", "0", "--num-processes 0 is out of range; give 1 or more"),
        ("--micro-batch", "0", "micro-batch 0 is not a number of sequences; use 1 or more"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused(
    chatlm: Chatlm, option: str, value: str, message: str
) -> None:
    """Rather than taken for the default."""
    assert chatlm(*FAST, option, value).message == message
    assert left() == set()


# --- plans


def test_a_micro_batch_above_its_share_is_refused(chatlm: Chatlm) -> None:
    """With the arithmetic, and the largest that would do."""
    ended = chatlm(*FAST, "--num-processes", "2", "--micro-batch", "17")

    assert ended.message == (
        "micro-batch 17 is larger than one device's share of the effective batch: 32 over "
        "2 processes is 16; use --micro-batch 16 or less, or tune with a larger --effective-batch"
    )


def test_an_effective_batch_below_the_number_of_processes_is_refused(chatlm: Chatlm) -> None:
    """In tuning as in training."""
    tuned = chatlm(*ON_CPU, "--num-processes", "3", "--effective-batch", "2")
    trained = chatlm(*FAST, "--num-processes", "33")

    assert tuned.message == (
        "effective batch 2 is smaller than 3 processes; tune with --effective-batch 3 or more, or "
        "use fewer processes"
    )
    assert trained.message == (
        "effective batch 32 is smaller than 33 processes; tune with --effective-batch 33 or more, "
        "or use fewer processes"
    )


# --- devices


@both
def test_more_processes_than_gpus_are_refused(chatlm: Chatlm, command: tuple[str, ...]) -> None:
    """With both numbers."""
    with FakeDriver([FakeGpu(uuid="GPU-1"), FakeGpu(uuid="GPU-2")]):
        ended = chatlm(*command, "--num-processes", "3")

    assert ended.message == "3 processes, but 2 GPUs; use --num-processes 2 or fewer"


@both
def test_cuda_without_a_driver_is_refused(chatlm: Chatlm, command: tuple[str, ...]) -> None:
    """With what to use instead."""
    with FakeDriver(fails=NO_DRIVER):
        ended = chatlm(*command, "--device", "cuda")

    assert ended.message == (
        "no NVIDIA driver answers (Driver Not Loaded); use --device cpu, or check nvidia-smi"
    )


def test_cards_larger_than_the_host_are_refused(chatlm: Chatlm) -> None:
    """An emulated card takes its memory from the host."""
    ended = chatlm(*ON_CPU, "--vram-limit", "2000TiB")

    assert ended.message.startswith("1 emulated card(s) of 2048000 GiB do not fit into ")
    assert ended.message.endswith(" of host RAM; use a smaller --vram-limit")


# --- profiles


def test_an_unknown_profile_is_answered_with_the_nearest(chatlm: Chatlm) -> None:
    """To start from, to train with, or to show."""
    expected = "no profile 'fats'; did you mean fast?"

    assert chatlm("autotune", "--base", "fats").message == expected
    assert chatlm("train", "--profile", "fats").message == expected
    assert chatlm("profiles", "show", "fats").message == expected


def test_training_before_tuning_says_what_makes_a_profile(chatlm: Chatlm) -> None:
    """`tuned` is the default name."""
    assert chatlm("train").message == (
        "no profile 'tuned'; there are fast, small, standard, and `chatlm autotune` makes one"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = 9", "p.toml has schema 9, this version reads up to 1; update chatlm, or tune again"),
        ("schema = 1\nbach = 2", "p.toml: unknown key 'bach'; did you mean 'batch'?"),
    ],
)  # fmt: skip
def test_a_bad_profile_is_refused_by_every_command(
    chatlm: Chatlm, folder: Path, text: str, message: str
) -> None:
    """Before anything is written; tests of the schema have the other faults."""
    (folder / "p.toml").write_text(f"{text}\n")

    assert chatlm("train", "--profile", "p.toml").message == message
    assert chatlm("autotune", "--base", "p.toml").message == message
    assert chatlm("profiles", "show", "p.toml").message == message
    assert left() == {"p.toml"}


def test_a_name_that_leaves_the_folder_of_profiles_is_refused(chatlm: Chatlm) -> None:
    """Nothing is written elsewhere."""
    assert chatlm("autotune", "--name", "../tuned").message == (
        "'../tuned' cannot name a profile; use a plain word like tuned"
    )


# --- data


@pytest.mark.parametrize("option", ["--data", "--eval-data"])
def test_a_data_file_that_is_missing_or_empty_is_refused_at_once(
    chatlm: Chatlm, folder: Path, option: str
) -> None:
    """No worker needs to start for it."""
    (folder / "empty.jsonl").touch()
    (folder / "none").mkdir()
    train = (*FAST, "--data", "good.jsonl", option)

    assert chatlm(*train, "gone.jsonl").message.startswith(
        "data file gone.jsonl is not there; give Parquet, Arrow, JSON, JSON lines"
    )
    assert chatlm(*train, "empty.jsonl").message.startswith(
        "data file empty.jsonl is empty (0 bytes); give Parquet"
    )
    assert chatlm(*train, "none").message.startswith("folder none has no data files (*.parquet, ")
    (folder / "none").rmdir()
    assert left() == set()


# --- places


@pytest.mark.parametrize("place", ["good.jsonl/run", "good.jsonl", "/proc/run"])
def test_an_output_folder_that_cannot_be_written_is_refused_at_once(
    chatlm: Chatlm, place: str
) -> None:
    """Below a file, on one, or where the kernel keeps no files."""
    message = chatlm(*FAST, "--output-dir", place).message

    assert message.startswith(f"cannot write to {place}: ")
    assert message.endswith("; choose another --output-dir")


def test_an_output_folder_of_other_things_is_refused_fresh_or_not(
    chatlm: Chatlm, folder: Path
) -> None:
    """`--fresh` replaces a run, never anything else."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    train = (*FAST, "--output-dir", "model")
    expected = "model holds other things (config.json); choose an empty --output-dir"

    assert chatlm(*train).message == expected
    assert chatlm(*train, "--fresh").message == expected
    assert (folder / "model" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("model", "there"), [("./sft", True), ("sft", False), ("sft/checkpoint-2", True)]
)
def test_a_model_is_not_replaced_by_its_own_training(
    chatlm: Chatlm, folder: Path, model: str, there: bool
) -> None:
    """`--fresh` would remove it, and a run that fails then leaves neither; nor may a hub id name the run."""
    if there:
        (folder / model).mkdir(parents=True)
    train = (*FAST, "--fresh", "--model", model)

    assert chatlm(*train, "--output-dir", "sft").message == (
        "--output-dir sft contains the --model, which the run would replace; choose another "
        "--output-dir"
    )


@pytest.mark.parametrize(
    ("place", "refused"),
    [
        ("profiles", "cannot write to profiles: Not a directory"),
        ("logs", r"cannot write the log logs/autotune_\S+: File exists"),
    ],
)
def test_a_place_for_profiles_or_logs_that_cannot_be_written_is_refused_at_once(
    chatlm: Chatlm, folder: Path, place: str, refused: str
) -> None:
    """Not after a search of minutes; the logs are needed to tell why a worker failed."""
    (folder / place).touch()

    message = chatlm(*ON_CPU).message

    assert re.fullmatch(f"{refused}; run in a folder that you can write to", message)


# --- what only a worker finds

TRAIN = (*FAST, "--max-steps", "1", "--output-dir", "run", "--plain", "--json")


def test_damaged_data_ends_a_run_that_then_goes_well(
    chatlm: Chatlm, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left that the right run would stumble over; done, it is not done twice."""
    (folder / "bad.jsonl").write_text('{"prompt": "问", "response": "答"}\n' * 16 + '{"prompt')

    with pytest.raises(DataError) as bad:
        run(chosen("fast", Path("run"), data=("bad.jsonl",), max_steps=1))
    left_by_bad = left()
    good = run(chosen("fast", Path("run"), data=("good.jsonl",), max_steps=1))
    capsys.readouterr()
    again = chatlm(*TRAIN, "--data", "good.jsonl")

    assert str(bad.value).startswith(
        "bad.jsonl, line 17 is damaged or cut off: Unterminated string starting at: "
    )
    assert left_by_bad == set()
    assert ended(good).result["steps"] == 1
    assert again.message == (
        "run holds this run, which is finished; use --fresh to train it again, or another --output-dir"
    )


def test_a_workload_that_is_refused_leaves_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own words, and nothing is left."""
    monkeypatch.setenv("CHATLM_TOY", '{"how": "refuse", "building": true}')

    refused = installed("autotune", "--device", "cpu", *TOY, "--plain", "--json")

    assert (refused.code, refused.out) == (1, "")
    assert refused.err.splitlines()[-1] == "chatlm: no such toy; use another"
    assert "Traceback" not in refused.err
    assert left() == set()
