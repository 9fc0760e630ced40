"""What is known about a token store: `stats.json`, which carries a checksum of each file and one of its own."""

import functools
import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from autotune.files import write_text
from trainer.events import Tokenising

NAME = "stats.json"
MOST_BYTES = 1 << 16
"""Of the file: it has about 900."""

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Place = Annotated[list[Count], Field(min_length=2, max_length=2)]
Checksum = Annotated[int, Field(ge=0, lt=1 << 32)]


class Damaged(Exception):
    """A store is not as it was written; the text is a claim about one of its files."""


@dataclass(slots=True, kw_only=True)
class StoreStats:
    """What is known about the rows that are written."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: str
    """The store's: a folder that was renamed to another store's name is not that store."""
    width: Count
    """Bytes of a token."""
    rows: Count = 0
    tokens: Count = 0
    file: Count = 0
    """The file that is being read, from 0."""
    file_rows: Count = 0
    """Rows of it that are written."""
    cut_sources: Count = 0
    cut_targets: Count = 0
    empty_responses: Count = 0
    last_only: Count = 0
    """Conversations whose earlier answers the loss does not count, though it should."""
    altered: Count = 0
    """Rows of which the chat template leaves out a part."""
    spelled: Count = 0
    """Rows whose text spells a special token."""
    spelling: str | None = None
    """The first of those tokens."""
    has_loss_mask: bool = False
    """Whether the loss counts tokens of any source."""
    longest_source: Place = field(default_factory=lambda: [0, 0])
    """(row, tokens)"""
    longest_target: Place = field(default_factory=lambda: [0, 0])
    longest_both: Place = field(default_factory=lambda: [0, 0])
    largest_id: Place = field(default_factory=lambda: [0, 0])
    """(row, token id)"""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    damage: str | None = None
    """What was wrong with the store that this one replaces."""
    checksums: dict[str, Checksum] = field(default_factory=dict)
    """CRC-32 of each file, as far as it is written."""
    digest: str = ""
    """SHA-256 of the tokens and of what is learnt, once all rows are written."""
    checksum: Checksum = 0
    """`own_checksum`, when this was saved."""

    @classmethod
    def parse(cls, text: bytes) -> "StoreStats":
        """Raises Damaged where it is not what `save` wrote."""
        try:
            stats: StoreStats = _adapter().validate_json(text)
        except ValidationError as error:
            raise Damaged(f"{NAME} cannot be read") from error
        if stats.checksum != stats.own_checksum():
            raise Damaged(f"{NAME} has another checksum")
        return stats

    def own_checksum(self) -> int:
        """CRC-32 of all else that is recorded here."""
        values = {**asdict(self), "checksum": None}
        return zlib.crc32(json.dumps(values, sort_keys=True).encode())

    def save(self, folder: Path) -> None:
        self.checksum = self.own_checksum()
        write_text(folder / NAME, json.dumps(asdict(self)))
        (folder / NAME).chmod(0o600)

    def progress(self, total: int | None) -> Tokenising:
        """The progress of tokenising `total` rows."""
        return Tokenising(rows=self.rows, total=total, tokens=self.tokens, seconds=self.seconds)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        sizes = {"tokens.bin": self.width * self.tokens, "offsets.bin": 8 * (2 * self.rows + 1)}
        if self.has_loss_mask:
            sizes |= {"loss_mask.bin": self.tokens, "source_counts.bin": 4 * self.rows}
        return sizes

    def note_longest(self, first_row: int, lengths: npt.NDArray[np.int64]) -> None:
        """Notes the longest of further rows; the lengths of sources are at even places, of targets at odd ones."""
        sources, targets = lengths[::2], lengths[1::2]
        for known, sizes in (
            (self.longest_source, sources),
            (self.longest_target, targets),
            (self.longest_both, sources + targets),
        ):
            row = int(sizes.argmax())
            if sizes[row] > known[1]:
                known[:] = first_row + row, int(sizes[row])


@functools.cache
def _adapter() -> Any:
    return TypeAdapter(StoreStats)
