import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_ddpm.files import figures
from jax_ddpm.files.figures import save_curves, save_loss_curve, smooth_values
from jax_ddpm.files.images import (
    MIN_TILE,
    from_uint8,
    make_image_grid,
    save_gif,
    save_png,
    stretch_to_uint8,
    to_uint8,
)


def test_all_256_values_survive_a_round_trip():
    pixels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    images = from_uint8(pixels)
    assert (images.min(), images.max()) == (-1, 1)
    assert images.dtype == np.float32
    back = to_uint8(images)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, pixels)


def test_values_out_of_range_are_clipped_and_the_others_rounded():
    images = jnp.array([-3.0, -1.0, -0.9999, 0.003, 0.9999, 1.0, 3.0]).reshape(1, 1, 7, 1)
    assert to_uint8(images).ravel().tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_an_image_grid_shows_every_image_row_by_row_inside_a_frame():
    size = MIN_TILE
    pixels = np.broadcast_to(
        np.arange(1, 6, dtype=np.uint8)[:, None, None, None], (5, size, size, 3)
    )
    canvas = make_image_grid(pixels, padding=2)
    assert canvas.shape == (2 * (size + 2) + 2, 3 * (size + 2) + 2, 3)
    cells = [
        canvas[2 + r * (size + 2) :, 2 + c * (size + 2) :][:size, :size]
        for r in range(2)
        for c in range(3)
    ]
    assert [set(cell.ravel().tolist()) for cell in cells] == [{1}, {2}, {3}, {4}, {5}, {0}]
    assert canvas.sum() == sum(cell.sum() for cell in cells)  # only black between them


def test_small_images_are_enlarged_pixel_by_pixel():
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    scale = MIN_TILE // 8
    canvas = make_image_grid(pixels, padding=0)
    assert canvas.shape == (MIN_TILE, MIN_TILE, 1)
    np.testing.assert_array_equal(canvas[::scale, ::scale], pixels[0])


def test_the_number_of_columns_can_be_chosen():
    pixels = np.zeros((6, MIN_TILE, MIN_TILE, 1), np.uint8)
    assert make_image_grid(pixels, columns=6, padding=0).shape == (MIN_TILE, 6 * MIN_TILE, 1)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_png_keeps_every_pixel(tmp_path, channels, mode):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "new" / "image.png", image)
    with Image.open(tmp_path / "new" / "image.png") as found:
        assert (found.format, found.mode, found.size) == ("PNG", mode, (7, 5))
        np.testing.assert_array_equal(np.asarray(found).reshape(image.shape), image)


@pytest.mark.parametrize(("num_frames", "channels"), [(1, 1), (2, 3), (51, 1)])
def test_a_gif_shows_all_frames_repeats_and_pauses_on_the_last(tmp_path, channels, num_frames):
    frames = np.zeros((num_frames, 8, 8, channels), np.uint8)
    frames.reshape(num_frames, 64, channels)[np.arange(num_frames), np.arange(num_frames)] = 255
    frames[-1] = 101
    save_gif(tmp_path / "a.gif", list(frames), seconds=2.0)
    with Image.open(tmp_path / "a.gif") as found:
        assert found.n_frames == num_frames
        if num_frames > 1:
            assert found.info["loop"] == 0
            assert found.info["duration"] == {2: 1000, 51: 40}[num_frames]
            found.seek(num_frames - 1)
            assert found.info["duration"] == 1500
        last = np.asarray(found.convert("RGB"))
        np.testing.assert_array_equal(last, np.broadcast_to(frames[-1], (8, 8, 3)))


@pytest.mark.parametrize(("channels", "most"), [(1, 80_000), (3, 120_000)])
def test_a_gif_of_noise_is_small(tmp_path, channels, most):
    """Measured: 73,553 and 110,799 bytes."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 100, 100, channels), dtype=np.uint8)
    save_gif(tmp_path / "a.gif", list(frames))
    assert (tmp_path / "a.gif").stat().st_size < most


def test_a_running_mean_begins_and_ends_with_the_values_and_keeps_a_line():
    line = np.linspace(5, -5, 21)
    np.testing.assert_allclose(smooth_values(line.tolist(), 4), line, atol=1e-12)  # measured: 0
    found = smooth_values([9.0, 1.0, 1.0, 1.0, 4.0, 1.0], 2)
    np.testing.assert_allclose(found, [9, 11 / 3, 16 / 5, 8 / 5, 2, 1])


def test_a_curve_that_falls_below_zero_is_drawn_as_a_whole(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: seen.extend(figure.axes))
    tables = {"log": np.linspace(10, -10, 50), "steep": np.array([1e-4] * 49 + [1.0])}
    save_curves(tmp_path / "a.png", {name: {"cosine": table} for name, table in tables.items()})
    assert {axes.get_yscale() for axes in seen} == {"linear"}
    assert seen[0].get_ylim()[0] < -10


@pytest.mark.parametrize("num_rows", [0, 100])
def test_the_loss_curve_is_a_png_however_much_was_logged(tmp_path, num_rows):
    losses = [1.0 / (i + 1) for i in range(num_rows)]
    others = {"held-out images": ([1, 2], [0.5, 0.4])}
    distances = ([10, 20], [50.0, 40.0])
    save_loss_curve(
        tmp_path / "loss.png", range(num_rows), losses, others, distances=distances, title="FD"
    )
    with Image.open(tmp_path / "loss.png") as found:
        assert found.format == "PNG"


def test_each_image_is_stretched_to_the_full_range_on_its_own():
    images = jnp.array([[0.0, 1.0, 2.0, 4.0], [-8.0, -7.0, -6.0, -4.0]]).reshape(2, 2, 2, 1)
    found = stretch_to_uint8(images)
    assert found.reshape(2, 4).tolist() == [[0, 63, 127, 255]] * 2
    flat = stretch_to_uint8(jnp.full((1, 2, 2, 1), 0.3))
    assert flat.tolist() == jnp.zeros((1, 2, 2, 1)).tolist()
