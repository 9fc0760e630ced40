"""Token stores: a damaged one is mended or refused; no row ever has other tokens."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench.fuzz.case import Broken, Case, Make, Place
from bench.fuzz.mutations import as_json, damage_bytes, damage_document, damage_place, is_whole
from trainer.data.encoder import Encoder
from trainer.data.token_store import TokenStore, open_store
from trainer.data.tokenization import Interrupted

ROWS = 30
LONGEST = 24
"""Tokens of a source, and of a target."""
EXTRA = (".partial-x", "x", ".lock-x", "stats.json", "more.bin")


@dataclass(frozen=True, slots=True)
class Original:
    """A store as it is made the first time."""

    paths: Sequence[str]
    encoder: Encoder
    cache: Path
    """With the store, and with what an interrupted tokenisation has left."""
    contents: dict[str, Any]


def prepare(folder: Path) -> Make:
    """A store of pairs, and one of conversations, which has loss masks; each also interrupted."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("trainer") / "assets/tokenizer"))
    originals = []
    for is_causal in (False, True):
        paths = [str(_write_rows(folder / f"{is_causal}-{part}.jsonl", part)) for part in (0, 1)]
        encoder = Encoder(tokenizer, is_causal=is_causal)
        originals.append(_original(folder / f"cache-{is_causal}", paths, encoder))
    return lambda place, draw: _make(place, draw, draw.choice(originals))


def _write_rows(path: Path, part: int) -> Path:
    """Conversations of two answers: a causal model learns both."""
    rows = [
        [f"第{n}问" * (1 + n % 5), "好。", f"再问 {part} {n}", f"答{n}。" * (1 + n % 9)]
        for n in range(ROWS)
    ]
    turns = [
        [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(row)]
        for row in rows
    ]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return path


def _original(cache: Path, paths: Sequence[str], encoder: Encoder) -> Original:
    os.environ["CHATLM_CACHE"] = str(cache)
    contents = contents_of(opened_store(paths, encoder))
    (whole,) = cache.glob("[!.]*")
    whole.rename(cache / "aside")
    with suppress(Interrupted):  # after the first file
        opened_store(paths, encoder, should_stop=lambda: True)
    (cache / "aside").rename(whole)
    return Original(paths, encoder, cache, contents)


def opened_store(
    paths: Sequence[str], encoder: Encoder, should_stop: Callable[[], bool] = bool
) -> TokenStore:
    return open_store(
        paths, encoder, max_source=LONGEST, max_target=LONGEST, should_stop=should_stop
    )


def contents_of(store: TokenStore) -> dict[str, Any]:
    """All that a run takes from the store, without the seconds that making it took."""
    rows = np.arange(len(store))
    return {
        "sources": [store.source(row).tolist() for row in range(len(store))],
        "targets": [store.target(row).tolist() for row in range(len(store))],
        "masks": [store.loss_mask(row).tolist() for row in range(len(store))],
        "lengths": [store.source_lengths(rows).tolist(), store.target_lengths(rows).tolist()],
        "counts": store.loss_mask_lengths(rows).tolist(),
        "longest": store.longest(),
        **{
            name: value
            for name, value in asdict(store.stats).items()
            if name not in ("seconds", "file", "file_rows", "damage", "checksum")
        },
    }


def _make(place: Place, draw: Random, original: Original) -> Case:
    cache = place.work / "cache"
    shutil.copytree(original.cache, cache)
    os.environ["CHATLM_CACHE"] = str(cache)
    (whole,) = (path for path in cache.iterdir() if not path.name.startswith("."))
    partial = cache / f".partial-{whole.name}"
    match draw.randrange(6):
        case 0 | 1:
            shutil.rmtree(partial)
        case 2 | 3:
            shutil.rmtree(whole)
        case 4:
            shutil.rmtree(whole)
            partial.rename(whole)
    for _ in range(draw.choice((1, 1, 2))):
        _damage(cache, whole.name, draw, place)
    return Case([reopened(original)], kept=[*map(Path, original.paths)])


def _damage(cache: Path, name: str, draw: Random, place: Place) -> None:
    files = sorted(cache.rglob("*"))
    plain = [file for file in files if is_whole(file)]
    stats = [file for file in plain if file.name == "stats.json"]
    match draw.randrange(10):
        case 0 | 1 | 2 if stats:
            file = draw.choice(stats)
            try:
                document = json.loads(file.read_bytes())
            except (ValueError, RecursionError):
                return
            file.write_bytes(as_json(damage_document(document, draw), draw))
        case 3 | 4 | 5 | 6 if plain:
            file = draw.choice(plain)
            file.write_bytes(damage_bytes(file.read_bytes(), draw))
        case 7 | 8:
            damage_place(draw.choice([*files, cache / f".lock-{name}"]), draw, place.outside)
        case _:
            extra = draw.choice(files or [cache]) / draw.choice(EXTRA)
            if os.access(extra.parent, os.W_OK | os.X_OK) and not os.path.lexists(extra):
                damage_place(extra, draw, place.outside)


def reopened(original: Original) -> Callable[[], None]:
    """Opens the store and reads it whole; raises Broken where it is not the original."""

    def read() -> None:
        found = contents_of(opened_store(original.paths, original.encoder))
        if differ := [name for name, value in original.contents.items() if found[name] != value]:
            raise Broken(f"other {', '.join(differ)} than at first")

    return read
