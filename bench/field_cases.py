"""The cases of `bench.field`: what each is, what is expected of it, and how that is seen."""

import contextlib
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import ChatlmError
from bench.commands import CHATLM, metrics

TRAIN = (
    "train", "--profile", "small", "--num-processes", "1", "--device", "cpu", "--plain",
    "--generate-rows", "0",
)  # fmt: skip
TUNE = ("autotune", "--device", "cpu", "--vram-limit", "4GiB", "--plain")
LONGEST = 300
"""Seconds of a command."""
SHOWN = 100
"""Characters of a message in the table."""


class NotMade(Exception):
    """The input is not there: its maker lacks a package."""


@dataclass(frozen=True)
class Case:
    """One input."""

    name: str
    place: str
    """Where it is in the folder of made inputs."""
    expected: str
    check: Callable[[Path], str]
    """What was seen; raises AssertionError where it is not as expected."""

    def run(self, place: Path) -> str:
        if not place.exists():
            raise NotMade(f"{self.place} is not there")
        return self.check(place)


def chatlm(*words: str | Path, code: int = 0) -> str:
    """What the command prints; AssertionError unless it exits with that code, or with a traceback."""
    done = subprocess.run(
        [*CHATLM, *map(str, words)], capture_output=True, text=True, timeout=LONGEST,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    said = done.stdout + done.stderr
    last = said.strip().splitlines()[-1:] or [""]
    assert "Traceback" not in said, f"a traceback, and last: {last[0][:SHOWN]}"
    assert done.returncode == code, f"exit {done.returncode}: {last[0][:SHOWN]}"
    return said


def refused(pattern: str, *words: str | Path) -> str:
    """The message of a command that exits with 1, which has that pattern."""
    said = chatlm(*words, code=1)
    (message,) = [line for line in said.splitlines() if line.startswith("chatlm: ")][-1:]
    assert re.search(pattern, message), f"does not say {pattern!r}: {message[:SHOWN]}"
    return message.removeprefix("chatlm: ")[:SHOWN]


def trained(output: str, *words: str | Path) -> Path:
    """The folder of a run that ended well."""
    chatlm(*TRAIN, "--output-dir", output, *words)
    return Path(output)


def shown(file: Path, model: str | Path = "chatlm-tiny", *words: str) -> dict[str, Any]:
    """The document of `chatlm data --json`, in this process: starting one takes seconds."""
    from cli import app

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        app(["data", str(file), "--model", str(model), "--json", *words], standalone_mode=False)
    document: dict[str, Any] = json.loads(printed.getvalue())
    return document


def refuses(pattern: str, file: Path) -> str:
    """The message for a file that cannot be read, which has that pattern."""
    try:
        document = shown(file)
    except ChatlmError as error:
        said = str(error).replace(f"{file.parent}/", "")
    else:
        raise AssertionError(f"read as {document['read_as']}")
    assert re.search(pattern, said), f"does not say {pattern!r}: {said[:SHOWN]}"
    return said[:SHOWN]


def learnt(document: dict[str, Any], row: int = 0) -> list[str]:
    """The learnt texts of a shown row, each as one."""
    texts: list[str] = []
    is_open = False
    shown_row = document["shown"][row]
    for token in (*shown_row["source"], *shown_row["target"]):
        if token["learnt"]:
            texts += [token["text"]] if not is_open else []
            texts[-1] += token["text"] if is_open else ""
        is_open = token["learnt"]
    return texts


def check_learnt(file: Path, *wanted: Sequence[str], model: str | Path = "chatlm-tiny") -> str:
    """How the file is read; AssertionError unless its first rows learn those texts, spaces and ends aside."""
    document = shown(file, model)
    for row, texts in enumerate(wanted):
        found = [re.sub(r"\[EOS\]|\s", "", text) for text in learnt(document, row)]
        assert found == [text.replace(" ", "") for text in texts], f"row {row + 1} learns {found}"
    return str(document["read_as"][0]).split(": ", 1)[-1][:SHOWN]


def same_as_lines(file: Path) -> str:
    """The rows of every file of `formats.py` that holds all of them, against JSON lines."""
    rows = [
        {"prompt": f"ask {i} 😀 é", "response": f"answer {i} 👩‍👩‍👧 \u2028 end"} for i in range(6)
    ]
    plain = file.parent / "plain.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, known = shown(file), shown(plain)
    for name in ("rows", "shown", "lengths"):
        assert found[name] == known[name], f"{name} are not those of JSON lines"
    return str(found["read_as"][0]).split(": ", 1)[-1][:SHOWN]


WHOLE = (
    "a.jsonl.gz", "a.csv", "a.tsv", "bom_crlf.jsonl", "utf16.jsonl", "wrapped.json", "columns.json", "pandas.json",
    "large_dict.parquet", "view.parquet", "zstd.parquet", "messages.parquet", "messages_text.parquet",
    "capitals.parquet",
)  # fmt: skip
TALKS = {
    "alpaca.json": ["2"], "sharegpt.json": ["hello"], "sharegpt_in_messages.json": ["hello"],
    "roles.json": ["hello"], "parts.json": ["hello"], "mixed.jsonl": ["b"], "mixed2.jsonl": ["d"],
}  # fmt: skip
REFUSED = {
    "duplicate.parquet": "prompt (2 times|twice)",
    "duplicate_keys.jsonl": "prompt (2 times|twice)",
    "gb.jsonl": "iconv -f GB18030 -t UTF-8",
    "binary.parquet": "column prompt",
    "lists.parquet": "row 1, column response",
    "null.parquet": "row 6, column response",
    "nested.parquet": "found: 'row'|found: row",
    "nan.jsonl": "row 2, column response",
    "tail_nul.jsonl": "line 7",
}


def reads(texts: list[str], file: Path) -> str:
    return check_learnt(file, texts)


def format_cases() -> list[Case]:
    said = "read, and said how"
    cases: list[tuple[str, str, Callable[[Path], str]]] = [
        *((name, said, same_as_lines) for name in WHOLE),
        *((name, said, functools.partial(reads, texts)) for name, texts in TALKS.items()),
        ("pretty.json", "read as one row", one_row),
        *((name, f"refused: {p}", functools.partial(refuses, p)) for name, p in REFUSED.items()),
    ]
    return [
        Case(f"formats/{name}", f"formats/{name}", expected, check)
        for name, expected, check in cases
    ]


def one_row(file: Path) -> str:
    document = shown(file)
    assert document["rows"] == 1
    return str(document["read_as"][0]).split(": ", 1)[-1]


def prompt_and_messages(file: Path) -> str:
    check_learnt(
        file, ["one two"], ["hello", "hello again"], model=file.parent / "assistant_first/llama"
    )
    return check_learnt(file, ["one two"], ["hello again"])


def tool_calls(folder: Path) -> str:
    for name in ("empty", "null"):
        document = shown(folder / f"{name}.jsonl", folder / "llama")
        call, answer = (text.strip() for text in learnt(document))
        assert "call" in call, call
        assert "weather" in call, call
        assert '"town": "riga"' in call, call
        assert answer.startswith("it rains"), answer
        prompt = "".join(token["text"] for token in document["shown"][0]["source"])
        assert prompt.startswith("system:weather"), prompt
    return call[:SHOWN]


def nllb(folder: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder / "model"))
    document = shown(folder / "data.jsonl", folder / "model")
    target = [token["id"] for token in document["shown"][0]["target"]]
    assert target == tokenizer(text_target="salut")["input_ids"], target
    run = trained(
        "nllb-run", "--data", folder / "data.jsonl", "--model", folder / "model", "--max-steps", "1"
    )
    forced = json.loads((run / "generation_config.json").read_text())["forced_bos_token_id"]
    assert forced == tokenizer.convert_tokens_to_ids("fra_Latn"), forced
    return f"targets begin with {tokenizer.convert_ids_to_tokens(target)[0]}, and forced_bos_token_id stays"


def weight_zero(file: Path) -> str:
    check_learnt(file, ["four"])
    check_learnt(file, ["four"], model=file.parent / "assistant_first/llama")
    return "four is learnt, nine is not"


def double_eos(folder: Path) -> str:
    first, second = shown(folder / "data.jsonl")["shown"]
    assert first["target"] == second["target"], "two ends"
    assert first["source"] == second["source"], "two ends in the prompt"
    return "one end each"


def special_in_text(file: Path) -> str:
    (notice,) = shown(file)["notices"]
    assert re.search(r"1 of 1 rows.*\[EOS\]", notice), notice
    return str(notice)[:SHOWN]


def long_conversation(folder: Path) -> str:
    limits = ("--max-source-length", "192", "--max-target-length", "192")
    (row,) = shown(folder / "data.jsonl", folder / "llama", *limits)["shown"]
    text = "".join(token["text"] for token in row["source"])
    assert row["cut_source"] == 0, f"{row['cut_source']} tokens cut"
    assert text.startswith("system:be kind"), text[:20]
    return f"{len(row['source']) + len(row['target'])} tokens, nothing is cut"


def trains(model: str, *words: str) -> Callable[[Path], str]:
    def check(folder: Path) -> str:
        run = trained(f"run-{model}", "--model", folder / model, "--max-steps", "1", *words)
        return f"loss {metrics(run)[-1]['loss']:.3f}"

    return check


def moe(kind: str) -> Callable[[Path], str]:
    def check(folder: Path) -> str:
        words = ("--model", folder / kind, "--max-steps", "2", "--dropout", "0")
        two = trained(f"moe-{kind}-2", *words, "--num-processes", "2")
        one = trained(f"moe-{kind}-1", *words)
        losses = [[step["loss"] for step in metrics(run)] for run in (one, two)]
        # Switch's router drops tokens above an expert's capacity, which depends on the micro-batch
        most = 1e-2 if kind == "switch" else 1e-4
        assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < most, losses
        more = ("--num-processes", "2", "--max-batch", "2", "--name", "moe")
        chatlm(*TUNE, "--model", folder / kind, *more)
        return f"trains and is tuned; losses on 1 and 2 processes {losses[0][-1]:.4f} and {losses[1][-1]:.4f}"

    return check


def vocab_mismatch(folder: Path) -> str:
    for kind in ("llama", "t5"):
        words = ("--data", folder / "data.jsonl", "--model", folder / kind)
        said = refused(r"205\d.*2,?048|2,?048.*205\d", *TRAIN, "--output-dir", "vocab-run", *words)
        refused(r"row", *TUNE, "--name", "vocab", *words)
    return said


def eos_list(folder: Path) -> str:
    run = trained(
        "eos-run", "--data", folder / "data.jsonl", "--model", folder / "llama", "--max-steps", "1"
    )
    then, now = (
        json.loads((f / "generation_config.json").read_text()) for f in (folder / "llama", run)
    )
    assert set(then["eos_token_id"]) <= set(now["eos_token_id"]), now
    kept = ("temperature", "top_p", "do_sample")
    assert all(now[name] == then[name] for name in kept), now
    return f"eos_token_id {now['eos_token_id']}"


def auto_map(folder: Path) -> str:
    run = trained("auto-run", "--model", folder / "model", "--max-steps", "1")
    code = (
        "import sys, transformers as hf; m = hf.AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1],"
        " trust_remote_code=True); print(type(m).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=LONGEST
    )
    assert done.returncode == 0, done.stderr[-SHOWN:]
    return f"loads with trust_remote_code as {done.stdout.strip()}"


def bf16_export(folder: Path) -> str:
    from safetensors import safe_open

    run = trained("bf16-run", "--model", folder / "llama", "--max-steps", "1")
    with safe_open(str(run / "model.safetensors"), "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}, kinds
    return "BF16"


def adapter_folder(folder: Path) -> str:
    run = trained("adapter-run", "--model", folder / "adapter", "--max-steps", "1")
    return f"trains on its base: loss {metrics(run)[-1]['loss']:.3f}"


def model_refused(pattern: str, name: str = "model") -> Callable[[Path], str]:
    return lambda folder: refused(
        pattern, *TRAIN, "--model", folder / name, "--output-dir", "refused", "--max-steps", "1"
    )


def prefixed(name: str, prefix: str) -> Callable[[Path], str]:
    def check(folder: Path) -> str:
        more = ("--max-steps", "1", "--output-dir", f"run-{name}")
        words = (*TRAIN, "--model", folder / name, *more)
        try:
            return refused(prefix, *words)
        except AssertionError:  # loading it is as good
            chatlm(*words, "--fresh")
            return "trains"

    return check


def nan(folder: Path) -> str:
    model = ("--model", folder / "t5")
    said = refused("not finite", *TRAIN, *model, "--output-dir", "nan-run", "--max-steps", "3")
    refused("not finite", *TUNE, *model, "--name", "nan")
    assert not Path("profiles/nan.toml").exists()
    assert not Path("nan-run/model.safetensors").exists()
    return said


def diverged(folder: Path) -> str:
    words = ("--learning-rate", "1e30", "--checkpoint-every", "2", "--max-steps", "6")
    said = refused(r"step \d+\b.*row", *TRAIN, "--output-dir", "diverged-run", *words)
    assert not Path("diverged-run/model.safetensors").exists()
    return said


def resume_more_data(folder: Path) -> str:
    file = folder / "a.jsonl"
    often = ("--checkpoint-every", "1", "--max-steps", "400")
    words = (*TRAIN, "--data", file, "--output-dir", "resume-run", *often)
    running = subprocess.Popen(
        [*CHATLM, *map(str, words)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while not Path("resume-run/checkpoint-2").exists():
            assert running.poll() is None, f"exit {running.poll()}"
            time.sleep(0.1)
    finally:
        running.send_signal(signal.SIGINT)
        running.wait()
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows + rows[:100]))
    return refused("400 rows.*500 rows", *words)


def own_loader(folder: Path) -> str:
    """A Trainer whose loader has a batch size of its own."""
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    from autotune.errors import UsageError
    from chatlm import tune_trainer
    from tests.support.tiny import tiny

    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            data: Any = self.train_dataset
            return DataLoader(data, batch_size=2, collate_fn=self.data_collator)

    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 32
    trainer = Own(tiny("gpt2"), TrainingArguments("own", use_cpu=True), train_dataset=rows)
    try:
        found = tune_trainer(trainer, target=0.5, vram_limit="2GiB")
    except UsageError as error:
        return str(error)[:SHOWN]
    raise AssertionError(f"tuned to {found}")


CASES = [
    Case("prompt_and_messages", "prompt_and_messages.jsonl", "messages are learnt", prompt_and_messages),
    Case("tool_calls", "tool_calls", "calls and tools reach the template", tool_calls),
    Case("nllb", "nllb", "targets as text_target, forced_bos_token_id kept", nllb),
    Case("nan", "nan", "stopped before the update, exit 1; not tuned", nan),
    Case("nan: learning rate 1e30", ".", "stopped before the update, exit 1", diverged),
    Case("resume_more_data", "resume_more_data", "refused with what changed", resume_more_data),
    Case("vocab_mismatch", "vocab_mismatch", "both sizes and a row, before the probe", vocab_mismatch),
    Case("moe/switch", "moe", "trains on 2 processes", moe("switch")),
    Case("moe/qwen2moe", "moe", "trains on 2 processes", moe("qwen2moe")),
    Case("eos_list", "eos_list", "the maker's ends stay", eos_list),
    Case("auto_map", "auto_map", "code beside it, or no auto_map", auto_map),
    Case("byt5", "byt5", "trains", trains("model")),
    Case("weight_zero", "weight_zero.jsonl", "masked", weight_zero),
    Case("long_conversation", "long_conversation", "the two limits together", long_conversation),
    Case("assistant_first", "assistant_first", "every answer after a question",
         lambda f: check_learnt(f / "data.jsonl", ["two", "four"], model=f / "llama")),
    Case("double_eos", "double_eos", "one end", double_eos),
    Case("special_in_text", "special_in_text.jsonl", "told, with a count", special_in_text),
    Case("named_templates", "named_templates", "the default template",
         lambda f: check_learnt(f / "data.jsonl", ["two"], model=f / "llama")),
    Case("spiece_only", "spiece_only", "pip install sentencepiece", model_refused("pip install sentencepiece")),
    Case("adapter_folder", "adapter_folder", "on its base, or what to do", adapter_folder),
    Case("custom_code", "custom_code", "custom code is not run here", model_refused("my_lm.*--trust-remote-code")),
    Case("checkpoints/sharded", "checkpoints", "trains", trains("sharded")),
    Case("checkpoints/bin", "checkpoints", "trains", trains("bin")),
    Case("checkpoints/compiled", "checkpoints", "names the prefix, or trains", prefixed("compiled", r"_orig_mod\.")),
    Case("checkpoints/ddp", "checkpoints", "names the prefix, or trains", prefixed("ddp", r"module\.")),
    Case("bf16_export", "bf16_export", "the checkpoint's dtype", bf16_export),
    *format_cases(),
    Case("tune_trainer: a loader of its own", ".", "refused", own_loader),
]  # fmt: skip
