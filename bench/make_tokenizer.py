"""Writes the bundled tokenizer: a BPE of ChatLM's kind, trained on the bundled training data.

Characters that the data lack become bytes, so no text is lost: what is decoded is what was encoded,
up to NFKC (which makes the full-width comma a plain one). Two readings are given up: a literal `▁`
comes back as a space, and the name of a special token in a text is that token. Adding an end token
is left to those who build sequences.

    python -m bench.make_tokenizer            write trainer/assets/tokenizer/
    python -m bench.make_tokenizer --check    fail unless the files are what would be written
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ASSETS = Path(__file__).parent.parent / "trainer" / "assets"
DATA = ASSETS / "data" / "train.jsonl"
FOLDER = ASSETS / "tokenizer"

SIZE = 2048
SPECIALS = ("[PAD]", "[EOS]", "[SEP]", "[BOS]", "[CLS]", "[MASK]", "[UNK]")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

# The data are made from patterns: without a bound, whole sentences would become tokens. Four is the
# length of an idiom.
LONGEST = 4
RAREST = 20

CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 1_000_000_000,
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
    **{f"{special.strip('[]').lower()}_token": special for special in SPECIALS},
}


def untrained() -> Tokenizer:
    """The tokenizer around an empty BPE."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    # No `▁` in front of a text: Chinese has no spaces, and the first word should be like any other.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def trained(texts: Iterable[str], size: int = SIZE) -> Tokenizer:
    """A tokenizer of exactly `size` entries: specials, then bytes, then what the texts teach."""
    tokenizer = untrained()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - len(BYTES),
            min_frequency=RAREST,
            max_token_length=LONGEST,
            special_tokens=list(SPECIALS),
            initial_alphabet=["▁"],  # the data have no spaces; texts of users do
            show_progress=False,
        ),
    )
    tokenizer = with_bytes(tokenizer)
    found = tokenizer.get_vocab_size()
    if found != size:
        raise SystemExit(f"the texts give {found} entries and not {size}; lower RAREST or SIZE")
    return tokenizer


def with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the 256 bytes right after the specials; the trainer cannot place them."""
    state = json.loads(tokenizer.to_str())
    learnt = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    assert learnt[: len(SPECIALS)] == list(SPECIALS)
    entries = [*SPECIALS, *BYTES, *learnt[len(SPECIALS) :]]
    state["model"]["vocab"] = {entry: index for index, entry in enumerate(entries)}
    return Tokenizer.from_str(json.dumps(state))


def files(data: Path = DATA) -> dict[str, str]:
    """The text of each tokenizer file by its name."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    tokenizer = trained(row[side] for row in rows for side in ("prompt", "response"))
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(CONFIG, indent=2) + "\n",
    }


def write(folder: Path, data: Path = DATA) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(data).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def stale(folder: Path, data: Path = DATA) -> list[str]:
    """The names of the files that are missing or differ from what would be written."""
    return [
        name
        for name, text in files(data).items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the bundled tokenizer.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        write(FOLDER)
        return 0
    if differing := stale(FOLDER):
        print(
            f"{', '.join(differing)} in {FOLDER}: not what make_tokenizer writes; run it and commit"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
