import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop.files import read_weights, write_weights
from jax_ddpm.interop.plain_torch import read_state_dict

STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "half": np.array([1.5, -2.0], np.float16),
    "double": np.array([np.pi]),
    "brain": np.array([1.5, np.nan], ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS"])
def test_weights_survive_writing_and_reading_bit_for_bit(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    write_weights(path, STATE)
    found = read_weights(path)
    assert found.keys() == STATE.keys()
    for name, array in STATE.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_numpy_files_are_read(tmp_path):
    write_weights(tmp_path / "w.npz", {"a/W": np.ones(3)})
    np.testing.assert_array_equal(read_weights(tmp_path / "w.npz")["a/W"], np.ones(3))


def test_numpy_files_with_objects_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="not a complete"):
        read_weights(tmp_path / "w.npz")


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 9], ids=["empty", "garbage"])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not a complete"):
        read_weights(tmp_path / name)


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"must end in one of .safetensors"):
        read_weights(tmp_path / "w.onnx")
    with pytest.raises(UserError, match=r"there is no file"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match=r"must end in one of"):
        write_weights(tmp_path / "w.onnx", STATE)


def save(tmp_path, value):
    torch = pytest.importorskip("torch")
    torch.save(value(torch), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_parameters_that_need_gradients_are_read(tmp_path):
    path = save(tmp_path, lambda torch: {"a": torch.nn.Parameter(torch.ones(2))})
    np.testing.assert_array_equal(read_weights(path)["a"], np.ones(2))


def contain_itself(torch):
    inside = {"a": torch.zeros(2)}
    inside["model"] = inside
    return inside


def repeat(torch):
    value = {"a": torch.zeros(1)}
    for _ in range(40):
        value = {"a": value, "b": value}
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (contain_itself, "nests or repeats names endlessly"),
        (repeat, "nests or repeats names endlessly"),
        (lambda torch: {1: torch.ones(1), "1": torch.ones(1)}, "nests or repeats names"),
        (lambda torch: {"a": torch.ones(1).expand(2**40)}, "decompression bomb"),
        (
            lambda torch: {"a": torch.ones(1).expand(2**10)},
            "a is not an array of numbers: it claims",
        ),
        (lambda torch: {"a": torch.eye(2).to_sparse()}, "a is not an array of numbers"),
    ],
    ids=["circle", "repeated", "twice", "huge", "stretched", "sparse"],
)
def test_mappings_that_are_not_state_dicts_are_refused(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        read_weights(save(tmp_path, value))


def test_a_folder_is_not_a_weight_file(tmp_path):
    with pytest.raises(UserError, match="is a folder: give the weight file in it"):
        read_weights(tmp_path)


def write_safetensors(path, kind, num_bytes, shape):
    """Write one tensor of a type that the library may not be able to write."""
    about = {"dtype": kind, "shape": shape, "data_offsets": [0, num_bytes]}
    header = json.dumps({"w": about}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(num_bytes)))
    return path


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)]
)
def test_floats_of_8_bits_are_widened_without_rounding(tmp_path, kind, dtype):
    found = read_weights(write_safetensors(tmp_path / "a.safetensors", kind, 4, [2, 2]))["w"]
    expected = np.arange(4, dtype=np.uint8).view(dtype).reshape(2, 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize(("kind", "num_bytes"), [("F8_E8M0", 4), ("F4", 2), ("F6_E2M3", 3)])
def test_other_small_types_are_refused_by_name(tmp_path, kind, num_bytes):
    path = write_safetensors(tmp_path / "a.safetensors", kind, num_bytes, [4])
    with pytest.raises(UserError, match=f"w has the type {kind}, which is not read: convert it"):
        read_weights(path)


def test_floats_of_8_bits_from_pytorch_are_widened(tmp_path):
    torch = pytest.importorskip("torch")
    values = torch.tensor([1.0, 0.5]).to(torch.float8_e4m3fn)
    torch.save({"w": values}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt")["w"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("read", [read_weights, read_state_dict])
def test_an_archive_of_torchscript_is_refused_with_advice(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        for name in ("a/data.pkl", "a/constants.pkl", "a/code/__torch__/net.py", "a/version"):
            file.writestr(name, b"")
    with pytest.raises(UserError, match=r"archive of TorchScript.*torch.save\(model.state_dict"):
        read(tmp_path / "a.pt")
