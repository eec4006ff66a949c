"""Weight files of other programs: safetensors, PyTorch (weights only), NumPy."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jax_ddpm.errors import UserError
from jax_ddpm.files import write_atomically

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".npz")


def read_weights(path: Path) -> dict[str, Any]:
    """What a weight file holds: names -> arrays, nested where a trainer nests.

    PyTorch's files are read with its weights-only loader, which executes nothing. Raises UserError
    for another kind of file, for a damaged one, and for a pickle that would run code.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    match path.suffix.lower():
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return _read_npz(path)
        case suffix if suffix in TORCH_SUFFIXES:
            return _read_torch(path)
    raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}")


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
            raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is not a whole NumPy file of arrays: {error}") from error


def _read_torch(path: Path) -> dict[str, Any]:
    torch = _import_torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
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
    return _to_arrays(torch, found)


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.suffix} files need PyTorch: install it, or convert the file to .safetensors"
        ) from error
    return torch


def _to_arrays(torch: Any, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Tensors as arrays and mappings as such; numbers, strings and lists stay out."""
    arrays: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            arrays[str(name)] = _to_array(torch, value)
        elif isinstance(value, Mapping):
            arrays[str(name)] = _to_arrays(torch, value)
    return arrays


def _to_array(torch: Any, tensor: Any) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _to_tensor(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
