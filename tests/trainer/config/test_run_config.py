"""A run's settings in a TOML file: what is read, what is refused, and that a saved one repeats the run."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

import profiles
from autotune.errors import OutputError, UsageError
from profiles.schema import RunSection
from tests.support.odd_files import ODD_FILES
from trainer.artifacts.run_folder import RunFolder
from trainer.config.flags import parse
from trainer.config.options import PANELS, AutotuneOptions, TrainOptions, WorkloadOptions
from trainer.config.resolve import resolve
from trainer.config.run_config import load_run, save_run
from trainer.config.settings import WHAT_IS_TRAINED, TrainSettings, WorkloadSettings
from trainer.reading.layouts import Columns


def written(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text)
    return file


def resolved(options: TrainOptions, world_size: int = 1) -> TrainSettings:
    profile = profiles.load(options.profile)
    return resolve(profile, options, device="cpu", world_size=world_size)


def saved_options(folder: Path, settings: TrainSettings) -> TrainOptions:
    """The options in the file of a run whose learning rate came to 0.003."""
    save_run(folder, settings, learning_rate=0.003)
    return TrainOptions(**load_run(folder / "run.toml"))


def refusal_of(file: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_run(file)
    return str(caught.value)


def test_the_keys_are_the_flags(tmp_path: Path) -> None:
    """With dashes, as on the command line, or underscores."""
    file = written(tmp_path, 'max-steps = 7\neval_data = ["a.jsonl"]\nepochs = 2\n')

    chosen = load_run(file)
    arguments = ["--max-steps", "7", "--eval-data", "a.jsonl", "--epochs", "2"]
    given = parse(arguments, help=None, read=load_run)

    assert chosen == given == {"max_steps": 7, "eval_data": ("a.jsonl",), "epochs": 2.0}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("max_step = 7", "has an unknown key max_step; did you mean max_steps?"),
        (
            "max-steps = 4\nmax_steps = 3",
            "has max-steps and max_steps, which are one key; keep one",
        ),
        (
            "max-new_tokens = 4\nmax_new-tokens = 3",
            "has max-new-tokens and max_new_tokens, which are one key; keep one",
        ),
        ('max_steps = "7"', "max_steps is '7'"),
        ('precision = "int8"', "precision is 'int8'"),
        ('schedule = "cosin"', "schedule is 'cosin'"),
        ("data = 3", "data is 3"),
        ("max_steps = ", "is not TOML"),
    ],
)
def test_what_a_file_cannot_mean_is_refused_by_name(
    text: str, refusal: str, tmp_path: Path
) -> None:
    """An unknown key with the nearest; of a value of another type, what stands there."""
    assert refusal in refusal_of(written(tmp_path, text))


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_stands_in_the_place_of_a_file_is_said(tmp_path: Path, kind: str) -> None:
    """In one short line; a pipe is not waited for."""
    make, reason = ODD_FILES[kind]
    file = tmp_path / "run.toml"
    make(file)

    said = refusal_of(file)

    assert said.startswith(
        (f"cannot read --config {file}: {reason}", f"--config {file} {reason[:60]}")
    )
    assert said.isprintable()
    assert len(said) < 300


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("fresh = true", "fresh, and no file may ask to replace a run; remove it there, and give --fresh on the command line"),
        ("fresh = false", "fresh, and no file may ask to replace a run; remove it there, and give --fresh on the command line"),
        ("resume = true", "resume, and no file may ask to resume a run; remove it there, and give --resume on the command line"),
    ],
)  # fmt: skip
def test_no_file_asks_to_replace_or_to_resume_a_run(
    tmp_path: Path, text: str, refusal: str
) -> None:
    """It would do so at every start, and remove the checkpoints of the one before."""
    file = written(tmp_path, f"{text}\n")

    assert refusal_of(file) == f"--config {file} has {refusal}"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("data = ['" + "x" * 10**6 + "', 3]", ": data.1 is 3: input should be a valid string"),
        ("max_steps = '" + "x" * 10**6 + "'", f": max_steps is '{'x' * 79} … {'x' * 19}': input should be a valid integer"),
        ("x" * 10**6 + " = 1", f" has an unknown key {'x' * 80} … {'x' * 20}; known are model, "),
        ("max_steps = true", ": max_steps is True: input should be a valid integer"),
        ("data = ['a', \"b\\u0000/*\"]", ": data has a NUL character, which no name has; fix it"),
        ("model = \"\\u0000\"", ": model has a NUL character, which no name has; fix it"),
    ],
)  # fmt: skip
def test_a_value_of_any_length_is_refused_in_a_short_line(
    tmp_path: Path, text: str, refusal: str
) -> None:
    file = written(tmp_path, text)

    assert refusal_of(file).startswith(f"--config {file}{refusal}")


def test_a_pattern_that_is_deeper_than_python_goes_finds_nothing(tmp_path: Path) -> None:
    """A name in a file may be anything; what reads the data says that it is not there."""
    pattern = "*/" * 2000

    chosen = load_run(written(tmp_path, f"data = ['{pattern}']"))

    assert chosen["data"] == (pattern,)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With the reason."""
    assert "No such file" in refusal_of(tmp_path / "none.toml")


def test_a_saved_run_resolves_to_the_same_settings(tmp_path: Path) -> None:
    """Once the profile is gone or another, too: it is saved beside it."""
    options = TrainOptions(
        profile="small", max_steps=9, seed=3, eval_data=("e.jsonl",), lora_rank=4, dropout=0.0,
        micro_batch=2, scale_lr="sqrt", length_grouping=True, output_dir=str(tmp_path),
    )  # fmt: skip
    settings = resolved(options, world_size=2)

    again = saved_options(tmp_path, settings)

    repeated = resolved(again, again.num_processes or 0)
    assert again.profile == str(tmp_path / "profile.toml")
    assert repeated.learning_rate == 0.003
    assert repeated.run_key() == {**settings.run_key(), "learning_rate": 0.003}
    assert repeated.plan(2) == settings.plan(2)


def test_a_run_is_repeated_in_its_own_folder(tmp_path: Path) -> None:
    """`--config RUN/run.toml --fresh`: the profile that it names lies in the folder that is cleared."""
    options = TrainOptions(profile="small", output_dir=str(tmp_path))
    settings = resolved(options)
    folder = RunFolder(tmp_path)
    folder.claim(settings.run_key(), fresh=False)
    again = saved_options(tmp_path, settings)
    repeated = resolved(again)

    folder.claim(repeated.run_key(), fresh=True)

    assert saved_options(tmp_path, repeated) == again


def test_an_unfinished_run_goes_on_by_its_own_file(tmp_path: Path) -> None:
    """Its file names the rate that the model's default came to; the first command resumes it as well."""
    options = TrainOptions(profile="small", max_steps=9, output_dir=str(tmp_path))
    settings = resolved(options)
    folder = RunFolder(tmp_path)
    folder.claim(settings.run_key(), fresh=False, learning_rate=0.003)
    repeated = resolved(saved_options(tmp_path, settings))
    folder.metrics.add({"step": 1})

    folder.claim(repeated.run_key(), fresh=False, learning_rate=0.003)
    folder.claim(settings.run_key(), fresh=False, learning_rate=0.003)

    with pytest.raises(OutputError, match=r"learning rate None, now 0\.001"):
        folder.check({**settings.run_key(), "learning_rate": 0.001}, fresh=False)


@pytest.mark.parametrize(
    ("run", "options"),
    [
        ({"freeze": "encoder"}, TrainOptions(freeze="none")),
        ({"lora_rank": 4, "lora_alpha": 8.0}, TrainOptions(lora_rank=0)),
    ],
)
def test_what_a_user_took_out_of_a_profile_stays_out(
    run: dict[str, object], options: TrainOptions, tmp_path: Path
) -> None:
    """The file is read with that profile again: a key that is left out would put it back."""
    profile, file = profiles.load("small"), tmp_path / "own.toml"
    changed = profile.run.model_copy(update=run)
    profiles.save(profile.model_copy(update={"run": changed}), file)
    settings = resolved(replace(options, profile=str(file)))

    repeated = resolved(saved_options(tmp_path, settings))

    assert repeated.workload == settings.workload


def test_no_choice_is_ignored() -> None:
    """Each goes into the settings under its own name, or has its own place where it is read."""
    elsewhere = {"profile", "device", "num_processes", "scale_lr"}
    known = {f.name for kind in (WorkloadSettings, TrainSettings) for f in fields(kind)}

    for kind in (WorkloadOptions, TrainOptions):
        assert {field.name for field in fields(kind)} <= known | elsewhere


def test_every_heading_of_the_help_names_choices_that_there_are() -> None:
    """And each of them once."""
    named = [name for names in PANELS.values() for name in names]
    known = {f.name for kind in (AutotuneOptions, TrainOptions) for f in fields(kind)}

    assert len(named) == len(set(named))
    assert set(named) <= known


def test_the_two_commands_agree_on_what_a_step_needs() -> None:
    """What memory depends on has the same flags in both."""
    shared = {field.name for field in fields(WorkloadOptions)}

    assert shared <= {field.name for field in fields(AutotuneOptions)}
    assert shared <= {field.name for field in fields(TrainOptions)}


def test_a_process_of_its_own_reads_the_file_too(tmp_path: Path) -> None:
    """`python -m trainer --config run.toml`: a flag beside it counts more."""
    file = written(tmp_path, "max-steps = 7\nepochs = 2\n")

    given = parse(["--config", str(file), "--max-steps", "9"], help=None, read=load_run)

    assert given == {"max_steps": 9, "epochs": 2.0}


def test_no_file_asks_to_run_a_models_code(tmp_path: Path) -> None:
    """Each command asks by its flag: neither a run.toml nor a profile holds or grants it."""
    asked = resolved(TrainOptions(profile="small", trust_remote_code=True))
    silent = resolved(TrainOptions(profile="small"))

    repeated = saved_options(tmp_path, asked)
    refused = refusal_of(written(tmp_path, "trust-remote-code = true\n"))

    assert asked.workload.trust_remote_code
    assert not repeated.trust_remote_code
    assert asked.run_key() == silent.run_key()
    assert "trust_remote_code" not in {*WHAT_IS_TRAINED, *RunSection.model_fields}
    assert refused.endswith(
        "has trust-remote-code, and no file may ask to run a model's code; remove it there, and give "
        "--trust-remote-code on the command line"
    )


def test_the_dtype_of_the_export_is_the_runs_choice_and_not_its_key(tmp_path: Path) -> None:
    """A resume may choose another one; the run's file keeps it."""
    chosen = resolved(TrainOptions(profile="small", export_dtype="bf16"))

    assert saved_options(tmp_path, chosen).export_dtype == "bf16"
    assert chosen.run_key() == resolved(TrainOptions(profile="small")).run_key()


# --- data and models in other folders


def test_what_lies_beside_a_file_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, a model's folder and a profile, of a run file and of a profile."""
    for name in ("rows.jsonl", "valid.jsonl", "model", "chatlm-tiny"):
        (tmp_path / name).mkdir()
    run = written(
        tmp_path,
        'profile = "own.toml"\ndata = ["rows.jsonl"]\neval_data = ["v*.jsonl"]\nmodel = "model"\n',
    )
    profile = profiles.load("small")
    section = profile.run.model_copy(update={"data": ["rows.jsonl"], "model": "chatlm-tiny"})
    profiles.save(profile.model_copy(update={"run": section}), tmp_path / "own.toml")
    monkeypatch.chdir(tmp_path.parent)

    chosen = load_run(run)
    loaded = profiles.load(chosen["profile"])

    assert chosen["profile"] == str(tmp_path / "own.toml")
    assert chosen["data"] == (str(tmp_path / "rows.jsonl"),)
    assert chosen["eval_data"] == (str(tmp_path / "v*.jsonl"),)
    assert chosen["model"] == str(tmp_path / "model")
    assert loaded.run.data == [str(tmp_path / "rows.jsonl")]
    assert loaded.run.model == "chatlm-tiny"  # a preset's name means the preset


def test_a_runs_key_and_file_do_not_depend_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run, started from two folders, is one run."""
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "model").mkdir()
    keys, data = [], []
    for folder, names in (
        (tmp_path, ("rows.jsonl", "model")),
        (tmp_path / "model", ("../rows.jsonl", ".")),
    ):
        monkeypatch.chdir(folder)
        options = TrainOptions(profile="small", data=names[:1], eval_data=names[:1], model=names[1])
        settings = resolved(options)
        keys.append(settings.run_key())
        save_run(tmp_path, settings, learning_rate=0.1)
        monkeypatch.chdir("/")
        data.append(load_run(tmp_path / "run.toml"))

    assert keys[0] == keys[1]
    assert [each["data"] for each in data] == [(str(tmp_path / "rows.jsonl"),)] * 2
    assert [each["eval_data"] for each in data] == [(str(tmp_path / "rows.jsonl"),)] * 2
    assert profiles.load(data[0]["profile"]).batch == profiles.load("small").batch


def test_a_runs_own_file_names_its_folder_from_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere a relative one would begin the run anew, or meet another folder of that name."""
    monkeypatch.chdir(tmp_path)
    settings = resolved(TrainOptions(profile="small", output_dir="run"))
    Path("run").mkdir()
    save_run(Path("run"), settings, learning_rate=0.1)
    monkeypatch.chdir("/")

    assert load_run(tmp_path / "run/run.toml")["output_dir"] == str(tmp_path / "run")


# --- columns


def test_columns_are_kept_in_a_profile_until_the_user_names_others(tmp_path: Path) -> None:
    """All three together: a prompt's column does not go with a conversation's."""
    profile = profiles.load("small")
    section = profile.run.model_copy(update={"prompt_column": "ask", "response_column": "say"})
    profiles.save(profile.model_copy(update={"run": section}), tmp_path / "own.toml")
    own = str(tmp_path / "own.toml")

    kept = resolved(TrainOptions(profile=own)).workload
    other = resolved(TrainOptions(profile=own, messages_column="chat")).workload

    assert kept.columns == Columns(prompt="ask", response="say")
    assert other.columns == Columns(messages="chat")


def test_a_conversation_and_a_prompt_are_not_named_together() -> None:
    with pytest.raises(UsageError, match="--messages-column does not go with --prompt-column"):
        resolved(TrainOptions(profile="small", messages_column="a", prompt_column="b"))
