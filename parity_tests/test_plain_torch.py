"""State dicts of PyTorch are read without it, and files that could run code are refused."""

import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop.plain_torch import read_state_dict

base = torch.arange(24, dtype=torch.float32)
TENSORS = {
    "plain": base.reshape(2, 3, 4),
    "turned": base.reshape(4, 6).T,
    "part": base[5:9],
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "half": base.half(),
    "double": base.double(),
    "parameter": torch.nn.Parameter(base.clone()),
}


@pytest.mark.parametrize("since_1_6", [True, False])
def test_both_formats_are_read_as_pytorch_reads_them(tmp_path, since_1_6):
    path = tmp_path / "w.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=since_1_6)
    found = read_state_dict(path)
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        expected = tensor.detach().numpy()
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
    module = torch.nn.BatchNorm2d(3)
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=since_1_6)
    assert list(read_state_dict(path)) == list(module.state_dict())


@pytest.mark.parametrize("since_1_6", [True, False])
def test_hostile_and_damaged_files_are_refused(tmp_path, since_1_6):
    path = tmp_path / "w.pth"

    class Hostile:
        def __reduce__(self):
            return print, ("code has run",)

    for content, message in (
        ({"a": Hostile()}, "asks for (builtins|__builtin__).print, which could run code"),
        ({"a": {"b": base}}, "it holds more than tensors"),
        ([base], "or no dictionary"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=since_1_6)
        with pytest.raises(UserError, match=message):
            read_state_dict(path)
    torch.save(TENSORS, path, _use_new_zipfile_serialization=since_1_6)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is not a state dict of PyTorch"):
        read_state_dict(path)
