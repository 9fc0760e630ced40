"""Reads and writes safetensors files one tensor at a time: the host holds at most the largest tensor.

The format (https://github.com/huggingface/safetensors#format): the length of a JSON header, the
header, the bytes. The library writes all tensors at once, and its mapped pages count as memory.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The tensors in file order: the widest types first, which aligns each of them."""
    return sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))


def write_tensors(
    path: Path, named: Sequence[tuple[str, Tensor]], contents: Iterable[Tensor]
) -> None:
    """Writes the contents, in the same order, under the names, types and shapes of `named`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in named:
        size = tensor.dtype.itemsize * math.prod(tensor.shape)
        place = {"shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        header[name] = {"dtype": NAMES[tensor.dtype], **place}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for content in contents:
            file.write(_bytes(content.detach().cpu().contiguous()))


class TensorFile(AbstractContextManager["TensorFile"]):
    """A file's tensors by name, read on request; use it in a `with`."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError where the header is none, or names bytes that the file does not have."""
        self._file: IO[bytes] = path.open("rb")
        try:
            size = path.stat().st_size
            length = int.from_bytes(self._file.read(8), "little")
            self._start = 8 + length
            if self._start > size:
                raise ValueError(f"{path.name} is cut off")
            header = json.loads(self._file.read(length))
            if not isinstance(header, dict):
                raise ValueError(f"{path.name} has no header")
            self._entries: dict[str, dict[str, Any]] = header
            self._entries.pop("__metadata__", None)
            if not all(_fits(entry, size - self._start) for entry in self._entries.values()):
                raise ValueError(f"{path.name} has a header that does not match its bytes")
        except (ValueError, RecursionError) as error:
            self._file.close()
            raise ValueError(str(error)) from error

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry["shape"]) for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        entry = self._entries[name]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        self._file.seek(self._start + entry["data_offsets"][0])
        if tensor.numel():
            self._file.readinto(_bytes(tensor))  # type: ignore[attr-defined]
        return tensor


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _fits(entry: Any, size: int) -> bool:
    """Whether the tensor that a header describes lies in `size` bytes."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]}:
            if dtype not in DTYPES or not all(type(n) is int and n >= 0 for n in shape):
                return False
            wanted = DTYPES[dtype].itemsize * math.prod(shape)
            return 0 <= first <= last <= size and last - first == wanted
    return False
