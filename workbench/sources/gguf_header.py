"""Is a GGUF file whole? A walk over its header, from the format's specification (ggml, docs/gguf.md, versions 2 and 3).

The gguf package's reader takes seconds, and on a damaged length it loops without end; this walk reads every byte of the header at
most once and never leaves the file.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from workbench.errors import EnvironmentFault, SourceError

_UINT32, _STRING, _ARRAY = 4, 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of the scalar value types
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_DEFAULT_ALIGNMENT = 32


class _DamagedError(Exception):
    """The header contradicts itself or the file's size."""


def check(path: Path) -> None:
    """Make sure that every tensor which the header promises lies inside the file.

    Raises:
        SourceError: not GGUF, cut short or damaged.
        EnvironmentFault: the gguf package, which knows the sizes of the tensor types, is missing.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ModuleNotFoundError as error:
        raise EnvironmentFault("reading a GGUF file needs the package gguf", fix="pip install 'workbench[train]'") from error
    type_sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}  # type -> (elements, bytes) of a block
    size = path.stat().st_size
    try:
        if size < 4:
            raise _DamagedError("it is too short")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = _data_end(_Header(data), type_sizes)
        if end > size:
            raise _DamagedError(f"its header promises {end:,} bytes and it has {size:,}")
    except _DamagedError as error:
        raise SourceError(f"is not a whole GGUF file: {error}", where=str(path), fix="copy or download it again") from error


class _Header:
    """A cursor that cannot leave the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def skip(self, count: int) -> int:
        """Move on by `count` bytes and return where they start."""
        start = self.at
        if count > len(self.data) - start:
            raise _DamagedError("it ends inside its header")
        self.at += count
        return start

    def uint32(self) -> int:
        return int(struct.unpack_from("<I", self.data, self.skip(4))[0])

    def uint64(self) -> int:
        return int(struct.unpack_from("<Q", self.data, self.skip(8))[0])

    def string(self) -> bytes:
        length = self.uint64()
        start = self.skip(length)
        return self.data[start : start + length]

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip(self.uint64())
        elif kind == _ARRAY:
            element, count = self.uint32(), self.uint64()
            if element == _STRING:
                for _ in range(count):
                    self.skip(self.uint64())
            else:
                self.skip(count * self._size(element))
        else:
            self.skip(self._size(kind))

    @staticmethod
    def _size(kind: int) -> int:
        if kind not in _SIZES:
            raise _DamagedError(f"it holds a value of unknown type {kind}")
        return _SIZES[kind]


def _data_end(header: _Header, type_sizes: dict[int, tuple[int, int]]) -> int:
    """Offset in bytes at which the last tensor ends."""
    if header.data[header.skip(4) : 4] != b"GGUF":
        raise _DamagedError("it does not start with 'GGUF'")
    version = header.uint32()
    if version not in (2, 3):
        raise _DamagedError(f"its version is {version}; 2 and 3 can be read")
    tensors, values = header.uint64(), header.uint64()
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(values):
        key, kind = header.string(), header.uint32()
        if key == b"general.alignment" and kind == _UINT32:
            alignment = header.uint32()
        else:
            header.skip_value(kind)
    if not tensors or not alignment:
        raise _DamagedError("it holds no tensors")
    ends = [_tensor_end(header, type_sizes) for _ in range(tensors)]
    return -(-header.at // alignment) * alignment + max(ends)


def _tensor_end(header: _Header, type_sizes: dict[int, tuple[int, int]]) -> int:
    """Offset in bytes, from the start of the data, at which the next tensor of the header ends."""
    name, dimensions = header.string(), header.uint32()
    if dimensions > _MAX_DIMENSIONS:
        raise _DamagedError(f"the tensor '{name.decode(errors='replace')}' has {dimensions} dimensions")
    elements = 1
    for _ in range(dimensions):
        elements *= header.uint64()
    kind, offset = header.uint32(), header.uint64()
    if kind not in type_sizes:
        raise _DamagedError(f"the tensor '{name.decode(errors='replace')}' is of unknown type {kind}")
    block_elements, block_bytes = type_sizes[kind]
    return offset + -(-elements // block_elements) * block_bytes
