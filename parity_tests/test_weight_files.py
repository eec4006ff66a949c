"""PyTorch's weight files are read and written without running code in them."""

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import from_torch, to_torch
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
    assert found["version"] == "2.3"


HARMLESS = {
    "arguments": argparse.Namespace(lr=1e-3, out=Path("runs/a"), nested=argparse.Namespace(a=[1])),
    "path": Path("runs/a"),
    "windows": PureWindowsPath("a/b"),
    "scalar": np.float64(0.5),
    "count": np.int64(3),
    "flag": np.bool_(True),
    "random": np.random.RandomState(0).get_state(),
    "losses": [0.5] * 200_000,
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_beside_weights_are_skipped(tmp_path, kind, zipped):
    torch.save(
        {"model": STATE, kind: HARMLESS[kind]},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=zipped,
    )
    found = read_weights(tmp_path / "w.pt")
    assert found["model"].keys() == STATE.keys()
    assert found.keys() <= {"model", "random"}  # whose state is an array


def test_lists_become_mappings_of_numbers(tmp_path):
    torch.save([STATE, {"state": {}}, 3, list(STATE.values())], tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert found.keys() == {"0", "1", "3"}
    assert found["0"].keys() == STATE.keys()
    np.testing.assert_array_equal(found["3"]["0"], STATE["a.weight"].numpy())


@pytest.mark.slow
def test_the_average_of_diffusers_training_is_found(tmp_path):
    """EMAModel stores a list, which only the order of the raw weights names."""
    diffusers = pytest.importorskip("diffusers")
    training_utils = pytest.importorskip("diffusers.training_utils")
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    average = training_utils.EMAModel(network.parameters(), decay=0.5)
    raw = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(2):  # the first step copies
        for parameter in network.parameters():
            parameter.data.add_(1)
        average.step(network.parameters())
    torch.save({"unet": network.state_dict(), "ema": average.state_dict()}, tmp_path / "w.pt")
    found = from_torch(read_weights(tmp_path / "w.pt"), "diffusers", dict(network.config))
    assert found.origin == "the average at ema.shadow_params"
    lag = average.cur_decay_value
    assert lag > 0.1
    for name, array in to_torch(found).items():
        np.testing.assert_allclose(array, raw[name] + 2 - lag, rtol=1e-6, atol=1e-6)
    taken = from_torch(
        read_weights(tmp_path / "w.pt"), "diffusers", dict(network.config), weights="raw"
    )
    np.testing.assert_allclose(to_torch(taken)["conv_in.bias"], raw["conv_in.bias"] + 2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["<f8", ">f4", "f2", "?", "i1", "<u4"])
@pytest.mark.parametrize("order", "CF")
def test_arrays_of_numpy_are_read(tmp_path, kind, order):
    array = np.array([[0, 1, 2], [3, 4, 5]], kind, order=order)
    torch.save({"a.weight": array, "names": np.array(["a"])}, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert found.keys() == {"a.weight"}
    assert found["a.weight"].dtype == array.dtype
    np.testing.assert_array_equal(found["a.weight"], array)


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
        UserError,
        match=r"w.pt is refused: it is damaged, or a pickle of (posix.system|more).* run code",
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
