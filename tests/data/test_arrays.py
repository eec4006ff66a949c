"""NumPy files as image sources."""

import numpy as np
import pytest

from jax_ddpm.data import pictures
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
GREY = COLOUR[..., 0]


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x", "y"), ("arr_0", "arr_1"), ("data", "y")]
)
def test_the_usual_names_in_an_npz_are_known(tmp_path, names):
    np.savez_compressed(tmp_path / "a.npz", **{names[0]: COLOUR, names[1]: np.arange(5)})
    source = open_source("arrays", tmp_path / "a.npz")
    np.testing.assert_array_equal(source.images, COLOUR)
    assert source.labels.tolist() == [0, 1, 2, 3, 4] and source.labels.dtype == np.int32


def test_an_npy_is_mapped_rather_than_read(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    source = open_source("arrays", tmp_path / "a.npy")
    assert source.image_shape == (6, 4, 1)
    base = source.images if isinstance(source.images, np.memmap) else source.images.base
    assert isinstance(base, np.memmap)
    np.testing.assert_array_equal(source.images[..., 0], GREY)
    assert source.labels.tolist() == [0] * 5


def test_arrays_are_resized_and_recoloured_at_once_or_on_demand(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", COLOUR)
    form = {"image_size": 3, "channels": 1, "resize": "box"}
    at_once = open_source("arrays", tmp_path / "a.npy", **form)
    assert at_once.images.shape == (5, 3, 3, 1)
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    on_demand = open_source("arrays", tmp_path / "a.npy", **form)
    assert on_demand.image_shape == (3, 3, 1) and len(on_demand.images) == 5
    np.testing.assert_array_equal([on_demand.images[i] for i in range(5)], at_once.images)


class Code:
    def __reduce__(self):
        return (print, ("this ran",))


BAD = {
    "floats": ({"images": COLOUR / 255}, r"images of float64, expected uint8 .*\.round\(\)"),
    "objects": ({"images": np.array([Code()], object)}, "holds Python objects"),
    "one image": ({"images": COLOUR[0, ..., 0]}, r"shape \(6, 4\), expected"),
    "no image": ({"images": COLOUR[:0]}, r"shape \(0, 6, 4, 3\), expected"),
    "channels first": ({"images": COLOUR.transpose(0, 3, 1, 2)}, "with 1 or 3 channels"),
    "another name": ({"pictures": COLOUR}, "the arrays pictures, but .* one of images, x"),
    "too few labels": ({"x": COLOUR, "y": np.arange(4)}, r"y is int64 of shape \(4,\)"),
    "float labels": ({"x": COLOUR, "y": np.zeros(5)}, "5 images, but y is float64"),
    "negative labels": ({"x": COLOUR, "y": np.full(5, -1)}, "0 or more"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_arrays_that_are_not_images_are_refused(tmp_path, arrays, message, capsys):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=rf"a\.npz .*{message}") as caught:
        open_source("arrays", tmp_path / "a.npz")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_python_objects_and_damage_in_an_npy_are_refused(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.array([Code()], object))
    with pytest.raises(UserError, match=r"a\.npy is not a complete .npy file: .*Python objects"):
        open_source("arrays", tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", COLOUR)
    data = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"b\.npy is not a complete .npy file"):
        open_source("arrays", tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.uint8(3))
    with pytest.raises(UserError, match=r"c\.npy holds an array of shape \(\)"):
        open_source("arrays", tmp_path / "c.npy")
    assert capsys.readouterr().out == ""


def test_a_path_that_is_not_a_numpy_file_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"needs the .npz or .npy file, --data.path"):
        open_source("arrays")
    with pytest.raises(UserError, match=r"there is no file .*b.npz"):
        open_source("arrays", tmp_path / "b.npz")
    with pytest.raises(UserError, match=r"a.txt ends in neither .npz nor .npy"):
        open_source("arrays", tmp_path / "a.txt")


def test_arrays_have_no_test_split(tmp_path):
    with pytest.raises(
        UserError, match=r"--split test: --data.name arrays has no images set aside"
    ):
        open_source("arrays", tmp_path / "a.npz", "test")
