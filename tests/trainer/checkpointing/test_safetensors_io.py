"""Safetensors files, one tensor at a time: the library reads ours, and we read the library's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpointing.safetensors_io import DTYPES, TensorFile, in_order, write_tensors


def some() -> dict[str, Tensor]:
    """One of each type; a scalar, an empty one, one that does not lie in a row."""
    torch.manual_seed(0)
    tensors = {f"of {name}": (torch.randn(3, 5) * 9).to(dtype) for name, dtype in DTYPES.items()}
    return {
        **tensors,
        "scalar/step": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "transposed": torch.randn(4, 6).T,
        "名": torch.randn(2),
    }


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    write_tensors(path, in_order(tensors), (tensor for _, tensor in in_order(tensors)))


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    """Every type, to the bit."""
    tensors = some()

    write(tmp_path / "ours", tensors)

    read = load_file(tmp_path / "ours")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("ours", [True, False])
def test_we_read_what_either_writes(tmp_path: Path, ours: bool) -> None:
    """Names and shapes without the contents, and each tensor when it is asked for."""
    tensors = {name: tensor.contiguous() for name, tensor in some().items()}
    (write if ours else lambda path, all: save_file(all, path))(tmp_path / "file", tensors)

    with TensorFile(tmp_path / "file") as file:
        shapes = file.shapes()
        read = {name: file.read(name) for name in tensors}

    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert all(read[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x01", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{", b"\x04\0\0\0\0\0\0\0null",
        b"\x08\0\0\0\0\0\0\0" + b'{"a": 1}', b"\x04\0\0\0\0\0\0\0\xff\xfe{}",
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """Before any memory is taken for it."""
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ValueError, match=r"\w"):
        TensorFile(tmp_path / "file")
