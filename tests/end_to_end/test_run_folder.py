"""One folder, several commands: what `--fresh` costs when the new run fails, and two trainings at once."""

import signal
from pathlib import Path

from tests.support.commands import chatlm, start, steps
from tests.support.processes import each_within
from tests.support.run_folders import contents
from tests.support.runs import chosen, rows_file, run

nothing_hangs = each_within(300)


def profile(path: Path, size: int) -> str:
    """A profile for a card of 1 GiB."""
    path.write_text(
        f"schema = 1\n[batch]\nmicro_batch_size = {size}\ngradient_accumulation_steps = 1\n"
        f"effective_batch_size = {size}\n[memory]\nvram_limit_bytes = {2**30}\n"
    )
    return str(path)


def arguments(folder: Path, size: int, *more: str) -> tuple[str, ...]:
    rows = rows_file(folder / "rows.jsonl", 40)
    return (
        "train", "--device", "cpu", "--plain", "--data", str(rows), "--output-dir", "run",
        "--profile", profile(folder / f"of-{size}.toml", size), *more,
    )  # fmt: skip


def test_a_fresh_run_that_does_not_fit_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    """It runs out of memory in the rehearsal of its largest step; then a smaller one replaces the old run."""
    data = (str(rows_file(tmp_path / "rows.jsonl", 40)),)
    small = profile(tmp_path / "of-4.toml", 4)
    run(chosen(small, tmp_path / "run", data=data, max_steps=2))
    before = contents(tmp_path / "run")

    failed = chatlm(tmp_path, *arguments(tmp_path, 65536, "--max-steps", "1", "--fresh"))
    after = contents(tmp_path / "run")
    run(chosen(small, tmp_path / "run", data=data, max_steps=3, fresh=True))

    assert failed.returncode == 1
    assert "out of memory at micro-batch 65536" in failed.stderr
    assert "use a smaller --micro-batch" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "the run in run is back: the new one had saved nothing" in failed.stdout
    assert after == before
    assert [step["step"] for step in steps(tmp_path / "run")] == [1, 2, 3]
    assert not [path for path in contents(tmp_path / "run") if "/." in path or "kept" in path]


def test_a_second_training_in_a_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """With the first one's process and command; the first saves a checkpoint when it is ended."""
    first = start(tmp_path, *arguments(tmp_path, 4, "--max-steps", "100000"))
    assert first.stdout is not None
    printed = ""
    while not printed.startswith("step "):
        printed = first.stdout.readline()

    second = chatlm(tmp_path, *arguments(tmp_path, 4, "--max-steps", "100000"))
    fresh = chatlm(tmp_path, *arguments(tmp_path, 4, "--max-steps", "3", "--fresh"))
    is_running = first.poll() is None
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=300)

    for refused in (second, fresh):
        assert refused.returncode == 1
        assert f"run is in use by process {first.pid} (" in refused.stderr
        assert "train --device cpu" in refused.stderr
        assert "wait for its end, or choose another --output-dir" in refused.stderr
    assert is_running
    assert first.returncode == 130
    assert "saved " in out
    assert not (tmp_path / "run" / ".lock").exists()
