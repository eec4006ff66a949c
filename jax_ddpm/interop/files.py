"""Read and write the weight files of other programs: safetensors, PyTorch and NumPy."""

import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import (
    MAX_ENTRIES,
    explain,
    read_json,
    read_npz,
    require_bounded,
    require_no_program,
    require_regular,
)

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".npz")
MAX_DEPTH = 16  # mappings and lists inside each other
MAX_TEXT = 100  # characters of a text beside the weights, such as a version


# Types of safetensors that NumPy lacks, and the others that may stand beside them.
TINY_FLOATS: dict[str, Any] = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
KINDS: dict[str, Any] = {
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    "C64": np.complex64,
}


class _Skipped:
    """Stands in for a harmless object beside the weights, so that no code of its class runs."""

    def __new__(cls, *_args: Any) -> "_Skipped":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget the object's attributes."""


class _Dtype(_Skipped):
    """Stands in for a dtype of NumPy; pickles give its code, such as f8, and its byte order."""

    def __init__(self, code: str = "", *_args: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        order = "" if state[1] == "|" else state[1]
        self.code = order + self.code


class _Array(_Skipped):
    """Stands in for an array of NumPy, built without NumPy's own unpickling."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        """Build the array if it holds numbers."""
        _version, shape, dtype, in_fortran_order, data = state
        if isinstance(data, bytes) and re.fullmatch(r"[<>=]?[biuf][1248]", dtype.code):
            order: Any = "F" if in_fortran_order else "C"
            self.array = np.frombuffer(data, dtype.code).reshape(shape, order=order)


# Objects that trainers store beside weights: (what is built in their place, their name).
STAND_INS: list[Any] = [
    (_Skipped, "argparse.Namespace"),
    *(
        (_Skipped, f"{module}.{pure}{kind}Path")
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for kind in ("", "Posix", "Windows")
    ),
    (_Dtype, "numpy.dtype"),
    (_Skipped, "numpy.ndarray"),  # the class itself; an array is built by _reconstruct
    *((_Skipped, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    *((_Array, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
]


def read_weights(path: Path) -> dict[str, Any]:
    """Read a weight file: names -> arrays, nested if the file is.

    Lists become mappings with the keys "0", "1" and so on. PyTorch's files are read by its
    weights-only loader, which executes no code. Raises UserError for other kinds of files, damaged
    files, pickles that would run code, and files that would take far more space in memory than on
    disk.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the weight file in it, {', '.join(SUFFIXES)}")
    require_regular(path)
    match path.suffix.lower():
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return read_npz(path)
        case suffix if suffix in TORCH_SUFFIXES:
            return _read_torch(path)
    raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def read_arguments(weights: Path, config: Path | None = None) -> dict[str, Any] | None:
    """Read the constructor arguments from the JSON file `config`, or from one beside `weights`.

    Returns None if there is neither. A run's config.json does not count.
    """
    beside = weights.with_suffix(".json")
    path = config or (beside if beside.is_file() else weights.with_name("config.json"))
    if config is None and not path.is_file():
        return None
    values = read_json(path, "the JSON file of a network's arguments")
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object that maps arguments to values")
    is_of_a_run = "format" in values and config is None
    return None if is_of_a_run else values


def require_suffix(path: Path, name: str = "") -> None:
    """Raise UserError unless `path`, given by the flag `name`, has a weight file's suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{name} {path} must end in one of {', '.join(SUFFIXES)}".lstrip())


def write_weights(path: Path, state_dict: Mapping[str, Any]) -> None:
    """Write a state dict in the format that the suffix of `path` names.

    PyTorch's files may also hold arrays in mappings and lists, and other values beside them.
    Raises UserError for an unknown suffix.
    """
    match path.suffix.lower():
        case ".safetensors":
            data = safetensors.numpy.save(dict(state_dict), {"format": "pt"})
            write_atomically(path, lambda temporary: temporary.write_bytes(data))
        case ".npz":
            buffer = io.BytesIO()
            np.savez(buffer, **state_dict)
            write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
        case suffix if suffix in TORCH_SUFFIXES:
            torch = _import_torch(path)
            tensors = _to_tensors(torch, dict(state_dict))
            write_atomically(path, lambda temporary: torch.save(tensors, temporary))
        case _:
            require_suffix(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            if set(kinds.values()) <= KINDS.keys():
                return file.get_tensors()
        return _widen_floats(safetensors.deserialize(path.read_bytes()))
    except Exception as error:  # a KeyError for a dtype that NumPy lacks, and others
        raise UserError(f"{path} is not a complete safetensors file: {explain(error)}") from error


def _widen_floats(tensors: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Convert floats of 8 bits, which NumPy lacks, to 32 bits. Raises ValueError for fewer bits."""
    arrays = {}
    for name, tensor in tensors:
        kind = tensor["dtype"]
        dtype = TINY_FLOATS.get(kind) or KINDS.get(kind)
        if dtype is None:
            raise ValueError(f"{name} has the type {kind}, which is not read: convert it to F32")
        array = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
        arrays[name] = array.astype(np.float32) if kind in TINY_FLOATS else array
    return arrays


def _read_torch(path: Path) -> dict[str, Any]:
    torch = _import_torch(path)
    try:
        require_no_program(path)
        _require_bounded_zip(path)
        with torch.serialization.safe_globals(STAND_INS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # PyTorch raises many kinds of errors for damaged and hostile files
        if isinstance(error, pickle.UnpicklingError):
            unknown = re.search(r"GLOBAL ([\w.]+)", str(error))
            more = f"of {unknown[1]}" if unknown else "of more than tensors"
            raise UserError(
                f"{path} is refused: it is damaged, or a pickle {more}, which could run code when "
                "loaded. Ask for the state dict alone, as .safetensors or from "
                "torch.save(model.state_dict())"
            ) from error
        raise UserError(
            f"{path} is not a complete PyTorch file ({type(error).__name__})"
        ) from error
    if not isinstance(found, Mapping) and not _holds_arrays(torch, found):
        raise UserError(f"{path} holds a {type(found).__name__}, but it must hold a state dict")
    return _to_arrays(torch, found, path)


def _require_bounded_zip(path: Path) -> None:
    """Raise UserError for a decompression bomb. PyTorch's older files are not zip files."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            require_bounded(sum(member.file_size for member in file.infolist()), path)


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.suffix} files need PyTorch: install it, or convert the file to .safetensors"
        ) from error
    return torch


def _to_arrays(torch: Any, values: Any, path: Path) -> dict[str, Any]:
    """Convert tensors to arrays, and lists to mappings; keep short texts; drop other objects.

    Raises UserError for a container that contains itself, and for too many entries.
    """
    arrays: dict[str, Any] = {}
    waiting = [(values, arrays, 0)]
    entries = num_bytes = 0
    while waiting:
        container, target, depth = waiting.pop()
        for name, value in _list_items(container):
            value = value.array if isinstance(value, _Array) else value
            entries += 1
            if entries > MAX_ENTRIES or depth > MAX_DEPTH or name in target:
                raise UserError(f"{path} nests or repeats names endlessly: it is not a state dict")
            if isinstance(value, torch.Tensor):
                num_bytes += value.numel() * value.element_size()
                require_bounded(num_bytes, path)
                target[name] = _to_array(torch, value, name, path)
            elif isinstance(value, np.ndarray):
                num_bytes += value.nbytes
                require_bounded(num_bytes, path)
                target[name] = value
            elif isinstance(value, str) and len(value) <= MAX_TEXT:
                target[name] = value
            elif isinstance(value, Mapping) or _holds_arrays(torch, value):
                waiting.append((value, target.setdefault(name, {}), depth + 1))
    return arrays


def _list_items(container: Any) -> Iterator[tuple[str, Any]]:
    items = container.items() if isinstance(container, Mapping) else enumerate(container)
    return ((str(name), value) for name, value in items)


def _holds_arrays(torch: Any, value: Any) -> bool:
    """Whether `value` is a list with tensors or containers, not only with numbers."""
    kinds = (torch.Tensor, _Array, Mapping, list, tuple)
    return isinstance(value, list | tuple) and any(isinstance(item, kinds) for item in value)


def _to_array(torch: Any, tensor: Any, name: str, path: Path) -> np.ndarray:
    """Convert a tensor. Raises UserError if it is not dense or NumPy lacks its dtype."""
    try:
        tensor = tensor.detach()
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # its elements share memory
            raise ValueError("it claims more elements than are stored")
        if tensor.is_floating_point() and tensor.element_size() == 1:  # 8 bits, as NumPy lacks
            tensor = tensor.to(torch.float32)
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except Exception as error:  # sparse, quantised and other tensors
        raise UserError(f"{path}: {name} is not an array of numbers: {explain(error)}") from error


def _to_tensors(torch: Any, value: Any) -> Any:
    """Convert the arrays in mappings and lists."""
    if isinstance(value, Mapping):
        return {name: _to_tensors(torch, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_to_tensors(torch, inner) for inner in value]
    return _to_tensor(torch, value) if hasattr(value, "shape") else value


def _to_tensor(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
