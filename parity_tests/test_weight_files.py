"""PyTorch's weight files are read and written without running code in them."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop.files import read_weights, write_weights

STATE = OrderedDict(
    {"a.weight": torch.randn(2, 3), "b": torch.tensor([1.5, -2], dtype=torch.bfloat16)}
)


@pytest.mark.parametrize(("suffix", "zipped"), [(".pt", True), (".bin", False)])
def test_state_dicts_are_read_bit_for_bit(tmp_path, suffix, zipped):
    path = tmp_path / f"w{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    np.testing.assert_array_equal(found["a.weight"], STATE["a.weight"].numpy())
    assert found["b"].astype(np.float32).tolist() == [1.5, -2]


def test_trainer_files_keep_their_nesting(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    saved = {
        "step": 3,
        "model": model.state_dict(),
        "opt": optimiser.state_dict(),
        "version": "2.3",
    }
    torch.save(saved, tmp_path / "model-1.pt")
    found = read_weights(tmp_path / "model-1.pt")
    assert found["model"].keys() == {"weight", "bias"}
    assert "version" not in found


def test_torch_loads_written_files_with_weights_only(tmp_path):
    write_weights(tmp_path / "w.pt", {name: np.ones(3, np.float32) for name in "ab"})
    found = torch.load(tmp_path / "w.pt", weights_only=True)
    assert found.keys() == {"a", "b"}


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, legacy):
    hostile = Hostile()
    hostile.path = tmp_path / "ran"
    path = tmp_path / "w.pt"
    if legacy:
        path.write_bytes(pickle.dumps({"a.weight": hostile}))
    else:
        torch.save({"a.weight": hostile}, path)
    with pytest.raises(
        UserError, match=r"w.pt is refused: it is damaged, or a pickle .* could run code"
    ):
        read_weights(path)
    assert not hostile.path.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x02garbage"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"w.pt is not a complete PyTorch file|damaged"):
        read_weights(tmp_path / "w.pt")


def test_anything_but_a_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds a list, but it must hold a state dict"):
        read_weights(tmp_path / "w.pt")
