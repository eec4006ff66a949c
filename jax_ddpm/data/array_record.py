"""Read the records in files of the kind array_record, one after the other or in any order."""

import os
import struct
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain, follow_inside, require_bounded, require_regular

# Riegeli, the format below array_record: blocks of 64 KiB that begin with a header, and chunks that
# are interrupted by these headers. Source: riegeli/records/block.h and chunk_header.h.
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 2**16, 24, 40
USABLE = BLOCK - BLOCK_HEADER
OTHER_CHUNKS = 100  # of a file's signature and its index
WALKED = 2**30  # bytes; a larger file may not be small on disk and large in memory
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access


class Shard(NamedTuple):
    """A file, and how many of its first records belong to the data."""

    path: Path
    num_records: int


class Shards(Sequence[bytes]):
    """The records of several files by index. A file is opened with the first record from it."""

    def __init__(self, shards: Sequence[Shard], folder: Path) -> None:
        """The files may be links only if they stay in `folder`."""
        self.shards, self.folder = shards, folder
        self.ends = list(accumulate(shard.num_records for shard in shards))
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> Any:
        """Read record number `index`. Raises UserError if it is damaged or far too large."""
        number = bisect_right(self.ends, index)
        position = index - (self.ends[number - 1] if number else 0)
        reader = self._open(number)
        try:
            (record,) = reader.read([position])
        except Exception as error:  # the library raises its own kinds of errors
            name = self.shards[number].path
            raise UserError(f"record {position} of {name} is damaged: {explain(error)}") from error
        return record

    def _open(self, number: int) -> Any:
        with self._lock:
            if number not in self._readers:
                self._readers[number] = open_shard(self.shards[number], self.folder)
            return self._readers[number]


def require_room(shards: Sequence[Shard], folder: Path) -> None:
    """Raise UserError for a file that is missing, or too small for its number of records."""
    for path, count in shards:
        try:
            size = follow_inside(path, folder).stat().st_size
        except OSError as error:
            raise UserError(f"{path} cannot be read: {explain(error)}") from error
        if size < count:
            raise UserError(
                f"{path} has {size:,} bytes, too few for the {count:,} records that "
                "dataset_info.json announces"
            )


def open_shard(shard: Shard, folder: Path) -> Any:
    """Open the reader of one file. Raises UserError unless it has as many records as it should."""
    path, count = shard
    require_small_chunks(path, folder, count)
    try:
        reader = import_array_record(path).ArrayRecordReader(os.fspath(path), OPTIONS)
        found = reader.num_records()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not an array_record file: {explain(error)}") from error
    if found < count:
        raise UserError(f"{path} has {found:,} records, but dataset_info.json announces {count:,}")
    return reader


def import_array_record(path: Path) -> Any:
    """Import the reader of array_record files. Raises UserError if it is missing."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError(
            f"{path} needs array_record, which cannot be imported ({explain(error)}): "
            "pip install 'jax_ddpm[tfds]'"
        ) from error
    return array_record_module


def require_small_chunks(path: Path, folder: Path, num_records: int) -> None:
    """Raise UserError for a chunk that would take far more bytes in memory than the file has.

    Looks at no more chunks than `num_records` records and their index need.
    """
    try:
        require_regular(path, folder)
        if path.stat().st_size > WALKED:
            return
        sizes = islice(read_decoded_sizes(path), num_records + OTHER_CHUNKS)
        largest = max(sizes, default=0)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {explain(error)}") from error
    require_bounded(largest, path)


def read_decoded_sizes(path: Path) -> Iterator[int]:
    """Read how many bytes each chunk takes in memory. Ends where the file is damaged."""
    with path.open("rb") as file:
        size, begin = os.fstat(file.fileno()).st_size, 0
        while begin < size:
            header = _read_header(file, begin)
            if len(header) < CHUNK_HEADER or not any(header):
                return
            _, data_size, _, kind_and_count, decoded_size = struct.unpack("<5Q", header)
            yield decoded_size
            end = _skip(begin, CHUNK_HEADER + data_size)
            begin = max(end, begin + (kind_and_count >> 8))


def _skip(begin: int, size: int) -> int:
    """The position after `size` bytes from `begin`, not counting the headers of blocks."""
    headers = (size + (begin + USABLE - 1) % BLOCK) // USABLE
    return begin + size + headers * BLOCK_HEADER


def _read_header(file: Any, begin: int) -> bytes:
    """Read the header of the chunk at `begin`, without a block's header that lies in it."""
    file.seek(begin)
    data: bytes = file.read(CHUNK_HEADER + BLOCK_HEADER)
    room = -begin % BLOCK  # bytes until the next block
    if room < CHUNK_HEADER:
        data = data[:room] + data[room + BLOCK_HEADER :]
    return data[:CHUNK_HEADER]
