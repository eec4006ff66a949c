"""Weight files of other programs: safetensors, PyTorch (weights only), NumPy."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import MAX_ENTRIES, explain, read_json, read_npz, require_bounded

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".npz")
MAX_DEPTH = 16  # of mappings in mappings


def read_weights(path: Path) -> dict[str, Any]:
    """What a weight file holds: names -> arrays, nested where a trainer nests.

    PyTorch's files are read with its weights-only loader, which executes nothing. Raises UserError
    for another kind of file, for a damaged one, for a pickle that would run code, and for one that
    would take far more memory than disk.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the weight file in it, {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    match path.suffix.lower():
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return read_npz(path)
        case suffix if suffix in TORCH_SUFFIXES:
            return _read_torch(path)
    raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def read_arguments(weights: Path, config: Path | None = None) -> dict[str, Any] | None:
    """The constructor arguments in the JSON file `config`, or in the one beside `weights`."""
    beside = weights.with_suffix(".json")
    path = config or (beside if beside.is_file() else weights.with_name("config.json"))
    if config is None and not path.is_file():
        return None
    values = read_json(path, "the JSON file of a network's arguments")
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold an object: argument -> value")
    of_a_run = "format" in values and config is None
    return None if of_a_run else values


def require_suffix(path: Path, name: str = "") -> None:
    """Raise UserError unless `path`, which the flag `name` gives, ends as a weight file does."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{name} {path} must end in one of {', '.join(SUFFIXES)}".lstrip())


def write_weights(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a state dict as .safetensors, .npz, or a PyTorch file, by suffix.

    Raises UserError for another suffix.
    """
    match path.suffix.lower():
        case ".safetensors":
            data = safetensors.numpy.save(dict(state_dict), {"format": "pt"})
            write_atomically(path, lambda temporary: temporary.write_bytes(data))
        case ".npz":
            buffer = io.BytesIO()
            np.savez(buffer, **state_dict)  # type: ignore[arg-type]
            write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
        case suffix if suffix in TORCH_SUFFIXES:
            torch = _import_torch(path)
            tensors = {name: _to_tensor(torch, array) for name, array in state_dict.items()}
            write_atomically(path, lambda temporary: torch.save(tensors, temporary))
        case _:
            require_suffix(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # a KeyError for a dtype that NumPy lacks, and others
        raise UserError(f"{path} is not a whole safetensors file: {explain(error)}") from error


def _read_torch(path: Path) -> dict[str, Any]:
    torch = _import_torch(path)
    try:
        _require_bounded_zip(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # PyTorch raises many kinds for damaged and for hostile files
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"{path} is a pickle of more than tensors, which could run code when it is read, "
                "or it is damaged: it is refused; ask for the state dict alone, as .safetensors or "
                "from torch.save(model.state_dict())"
            ) from error
        raise UserError(f"{path} is not a whole PyTorch file ({type(error).__name__})") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, expected a state dict")
    return _to_arrays(torch, found, path)


def _require_bounded_zip(path: Path) -> None:
    """Raise UserError for a decompression bomb; PyTorch's older files are not compressed."""
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


def _to_arrays(torch: Any, values: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Tensors as arrays and mappings as such; numbers, strings and lists stay out.

    A mapping may hold itself, or another many times over: there is an end to that.
    """
    arrays: dict[str, Any] = {}
    waiting = [(values, arrays, 0)]
    entries = num_bytes = 0
    while waiting:
        mapping, target, depth = waiting.pop()
        for name, value in mapping.items():
            entries += 1
            if entries > MAX_ENTRIES or depth > MAX_DEPTH or str(name) in target:
                raise UserError(f"{path} nests or repeats names without end: it is no state dict")
            if isinstance(value, torch.Tensor):
                num_bytes += value.numel() * value.element_size()
                require_bounded(num_bytes, path)
                target[str(name)] = _to_array(torch, value, str(name), path)
            elif isinstance(value, Mapping):
                waiting.append((value, target.setdefault(str(name), {}), depth + 1))
    return arrays


def _to_array(torch: Any, tensor: Any, name: str, path: Path) -> np.ndarray:
    """The tensor as an array. Raises UserError for one that is not dense or whose dtype is not."""
    try:
        tensor = tensor.detach()
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # its elements lie over each other
            raise ValueError("it announces more elements than are stored")
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except Exception as error:  # sparse, quantised and other tensors that NumPy does not have
        raise UserError(f"{path}: {name} is no array of numbers: {explain(error)}") from error


def _to_tensor(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
