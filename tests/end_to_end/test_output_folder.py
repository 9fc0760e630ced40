"""What a run leaves behind: a model that transformers alone can ask, its card, evaluations and picture.

One run of the real command learns 24 bundled questions by heart; every claim here is about its folder.
"""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dashboard.event_log import read_events
from tests.support.commands import output_of, steps
from tests.support.shared import once
from trainer.events import Evaluated
from trainer.reading.readers import bundled

QUESTIONS = 24
COPIES = 30
"""An epoch of each question so many times: 30 steps."""
EPOCHS = 2
PROFILE = f"""\
schema = 1
[batch]
micro_batch_size = {QUESTIONS}
gradient_accumulation_steps = 1
effective_batch_size = {QUESTIONS}
"""
RUN = "model_save/sft_few"
SHORT = 12
"""Characters of an answer: a long one takes more steps to learn."""
ASKED = """\
import json, os, sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
right = 0
for line in open(sys.argv[2], encoding="utf-8"):
    row = json.loads(line)
    asked = tokenizer(row["prompt"] + tokenizer.eos_token, return_tensors="pt")
    answer = model.generate(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"])
    text = tokenizer.decode(answer[0], skip_special_tokens=True)
    wanted = tokenizer.decode(tokenizer(row["response"])["input_ids"], skip_special_tokens=True)
    right += text.strip() == wanted.strip()
card = open(sys.argv[1] + "/README.md", encoding="utf-8").read()
snippet = card.split("```python\\n")[1].split("```")[0]
os.chdir(sys.argv[1])
exec(snippet)
print(right)
assert not {"trainer", "autotune"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user has trained; what the command printed is in `out.txt`."""
    return once(tmp_path_factory, "home", train)


def train(folder: Path) -> None:
    rows = Path(bundled("train")).read_text(encoding="utf-8").splitlines()
    chosen = [row for row in rows if len(json.loads(row)["response"]) <= SHORT][:QUESTIONS]
    (folder / "few.jsonl").write_text("".join(f"{row}\n" for row in chosen), "utf-8")
    (folder / "many.jsonl").write_text("".join(f"{row}\n" for row in chosen * COPIES), "utf-8")
    (folder / "few.toml").write_text(PROFILE)
    out = output_of(
        folder, "train", "--device", "cpu", "--plain", "--profile", "few.toml", "--seed", "1",
        "--data", "many.jsonl", "--eval-data", "few.jsonl", "--epochs", str(EPOCHS),
        "--learning-rate", "0.004", "--events", "events.jsonl", timeout=300,
    )  # fmt: skip
    (folder / "out.txt").write_text(out, "utf-8")
    ask(folder)


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return home / RUN


@pytest.fixture(scope="module")
def asked(home: Path) -> list[str]:
    """What a process that knows nothing of chatlm gets: the card's own answer, and how many are right."""
    return (home / "asked.txt").read_text("utf-8").splitlines()


def ask(folder: Path) -> None:
    """Has that process ask the model."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASKED, str(folder / RUN), str(folder / "few.jsonl")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "asked.txt").write_text(done.stdout, "utf-8")


def evaluations(run: Path) -> list[dict[str, Any]]:
    text = (run / "evaluations.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_transformers_alone_gets_the_learned_answers(asked: list[str]) -> None:
    """To the letter, 8 of 10 at least."""
    assert int(asked[-1]) >= 0.8 * QUESTIONS


def test_every_evaluation_is_kept(run: Path) -> None:
    """One at each epoch's end, its scores over all rows that were answered."""
    found = evaluations(run)

    assert [record["step"] for record in found] == [30, 60]
    assert [record["generated_rows"] for record in found] == [QUESTIONS] * EPOCHS
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[-1]["exact_match"] >= 0.8
    assert found[-1]["bleu"] > 80
    assert found[-1]["chrf"] > 80
    assert {record["words"] for record in found} == {"zh"}
    assert all(record["seconds"] > 0 for record in found)


def test_the_scores_are_those_of_transformers_alone(asked: list[str], run: Path) -> None:
    """Batched, padded and cached, the answers are the ones that a user gets one by one."""
    assert int(asked[-1]) == round(evaluations(run)[-1]["exact_match"] * QUESTIONS)


def test_samples_are_kept_and_printed(home: Path, run: Path) -> None:
    """The same three rows each time, as text, on the screen and in the log."""
    first, last = evaluations(run)[0]["samples"], evaluations(run)[-1]["samples"]
    (log,) = (home / "logs").glob("chat_trainer_*.log")

    assert [s["prompt"] for s in first] == [s["prompt"] for s in last]
    assert len(last) == 3
    for text in ((home / "out.txt").read_text("utf-8"), log.read_text("utf-8")):
        assert f"sample  {last[0]['prompt']} → {last[0]['answer']}" in text
        assert f"of {QUESTIONS} rows" in text


def test_listeners_hear_what_is_kept(home: Path, run: Path) -> None:
    """The event that the screen gets is the line of the file."""
    heard = [e for _, e in read_events(home / "events.jsonl") if isinstance(e, Evaluated)]

    for event, record in zip(heard, evaluations(run), strict=True):
        assert (event.loss, event.bleu, event.words) == (record["loss"], record["bleu"], "zh")
        assert event.samples[0].answer == record["samples"][0]["answer"]


def test_the_card_tells_the_runs_own_figures(run: Path) -> None:
    """What the hub reads on top, then how to ask, then figures that stand in the run's files."""
    card = (run / "README.md").read_text("utf-8")
    last, final = evaluations(run)[-1], steps(run)[-1]

    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text2text-generation\n")
    assert "base_model" not in card  # a preset's weights were random
    for figures in (
        f"| data | many.jsonl ({QUESTIONS * COPIES:,} rows) |",
        "| what is trained | all weights |",
        "| optimizer | adamw |",
        "| optimizer steps | 60 |",
        f"| effective batch | {QUESTIONS} |",
        f"| loss of the last step, per target token | {final['loss']:.4f} |",
        f"| loss per target token | {last['loss']:.4f} |",
        f"| exact match | {100 * last['exact_match']:.1f} % |",
        "![Loss over the steps of the run](loss.png)",
    ):
        assert figures in card


def test_the_cards_snippet_runs(asked: list[str], run: Path) -> None:
    """Pasted into Python as it is, beside the model, it prints the answer that the run got."""
    assert asked[:-1] == [evaluations(run)[-1]["samples"][0]["answer"]]


def test_the_folder_says_how_it_generates(run: Path) -> None:
    """As many tokens as the longest answer had, and the ids that training used."""
    config = json.loads((run / "generation_config.json").read_text("utf-8"))

    assert config["eos_token_id"] == 1
    assert config["pad_token_id"] == config["decoder_start_token_id"] == 0
    assert SHORT / 2 < config["max_new_tokens"] <= SHORT + 1
    assert config["use_cache"] is True


def test_the_loss_is_drawn(run: Path) -> None:
    """A picture of the expected size, and the same as lines."""
    head = (run / "loss.png").read_bytes()[:24]

    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1350, 750)
    assert "<svg" in (run / "loss.svg").read_text("utf-8")
