"""Read a state dict that torch.save wrote, without PyTorch and without running its pickle's code.

Only what such a file needs is understood: dictionaries, numbers, texts and dense tensors.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import require_bounded, require_no_program, require_regular

MAGIC = 0x1950A86A20F9469CFC6C  # begins the files of PyTorch before 1.6
DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
    """The memory of tensors; in old files, its content follows the pickle."""

    key: str
    dtype: Any
    numel: int


Contents = Callable[[_Storage], bytes]  # the memory of a storage


class _Tensor(NamedTuple):
    """A view of a storage, until the content of the storage is known."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read names -> arrays from a .pth file, of PyTorch before or since 1.6.

    Raises UserError for a damaged file, and for one that holds more than a flat dictionary of
    tensors.
    """
    require_regular(path)
    try:
        require_no_program(path)
        found, contents = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
        return {name: _to_array(tensor, contents) for name, tensor in found.items()}
    except UserError:
        raise
    except Exception as error:  # pickle, zipfile and struct raise many kinds of errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a state dict of PyTorch: {reason}") from error


def _require_tensors(found: Any) -> dict[str, _Tensor]:
    """Return `found` if it is a flat dictionary of tensors. Raises ValueError otherwise."""
    if not isinstance(found, dict) or not all(isinstance(v, _Tensor) for v in found.values()):
        raise ValueError("it holds more than tensors, or no dictionary")
    return {str(name): tensor for name, tensor in found.items()}


class _Unpickler(pickle.Unpickler):
    """Builds stand-ins for tensors and knows no other class."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which could run code")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, numel, *view = pid
        if kind != "storage" or dtype not in DTYPES.values() or any(v is not None for v in view):
            raise pickle.UnpicklingError("it holds an unknown kind of storage")
        return _Storage(str(key), dtype, int(numel))


def _rebuild_tensor(
    storage: _Storage, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it holds a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _read_zip(path: Path) -> tuple[dict[str, _Tensor], Contents]:
    with zipfile.ZipFile(path) as file:
        require_bounded(sum(member.file_size for member in file.infolist()), path)
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    found = _require_tensors(_Unpickler(io.BytesIO(members["data.pkl"])).load())
    return found, lambda storage: members[f"data/{storage.key}"]


def _read_old(path: Path) -> tuple[dict[str, _Tensor], Contents]:
    file = io.BytesIO(path.read_bytes())
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("it does not begin as such files do")
    _Unpickler(file).load()  # the version of the format
    _Unpickler(file).load()  # about the machine
    found = _require_tensors(_Unpickler(file).load())
    sizes = {
        value.storage.key: value.storage.numel * np.dtype(value.storage.dtype).itemsize
        for value in found.values()
    }
    contents = {}
    for key in _Unpickler(file).load():
        file.seek(struct.calcsize("<q"), io.SEEK_CUR)  # the number of elements
        contents[str(key)] = file.read(sizes[str(key)])
    return found, lambda storage: contents[storage.key]


def _to_array(tensor: _Tensor, contents: Contents) -> np.ndarray:
    storage, offset, size, stride = tensor
    memory = np.frombuffer(contents(storage), storage.dtype, count=storage.numel)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(memory)):
        raise ValueError("a tensor claims more elements than are stored")
    steps = [step * memory.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(memory[offset:], size, steps).copy()
