from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.cli import sample as command
from jax_ddpm.cli.edit import read_edit
from jax_ddpm.config.run import Config, SampleConfig, SourceConfig, validate
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import sample as generate
from jax_ddpm.jobs.edit import Inpaint, read_image, read_with_mask


def mark_slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two 8x8 pictures, a larger one, masks of their upper halves, and other files."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{name}.png")
    for name, shape in (("mask", (8, 8)), ("wide", (8, 9)), ("large_mask", (16, 20))):
        shades = np.zeros(shape, np.uint8)
        shades[: shape[0] // 2] = 255
        Image.fromarray(shades).save(folder / f"{name}.png")
    Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / "large.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "black.png")
    (folder / "text.png").write_text("no picture")
    (folder / "guide.py").write_text(
        "import jax.numpy as jnp\n"
        "def bright(x_t, t, label):\n"
        "    return -((x_t - label[:, None, None, None]) ** 2).sum((1, 2, 3))\n"
        "def bad_shape(x_t, t, label):\n"
        "    return x_t\n"
        "def raises(x_t, t, label):\n"
        "    raise KeyError('lost')\n"
        "number = 3\n"
    )
    (folder / "broken.py").write_text("import no_such_module_at_all\n")
    return folder


def read_pixels(path):
    return np.asarray(Image.open(path))[..., None]


@pytest.fixture(scope="module")
def draw(trained_run, pictures, tmp_path_factory):
    """`draw("--num 3 --inpaint a.png ...")`: the images that the command writes, [n, h, w, c]."""
    folder = tmp_path_factory.mktemp("drawn")

    def run(flags, of=None, also=()):
        words = [
            str(pictures / word) if "." in word and word[0].isalpha() else word
            for word in flags.split()
        ]
        args = [str(of or trained_run), *words, "--out", str(folder / "images.npz"), *also]
        out = command.draw(command.read(args))
        with np.load(out) as arrays:
            return arrays["arr_0"]

    run.folder = folder
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "",
        *mark_slow(
            ["--repaint-jump 1 --repaint-resample 2"],
            ["--sampler dpmpp_2m"],
            ["--sampler ddpm --repaint-resample 3 --repaint-jump 2 --dtype float64"],
        ),
    ],
)
def test_inpainting_keeps_what_is_black_in_the_mask_and_draws_the_rest(draw, pictures, flags):
    found = draw(f"--num 3 --inpaint a.png --mask mask.png --trajectory {flags}")
    image = np.broadcast_to(read_pixels(pictures / "a.png"), found.shape)
    np.testing.assert_array_equal(found[:, 4:], image[:, 4:])
    new = found[:, :4].astype(int)
    assert np.abs(new - image[:, :4]).mean((1, 2, 3)).min() > 10
    assert np.abs(new[0] - new[1]).max() > 0
    with Image.open(draw.folder / "images.gif") as gif:  # what --trajectory asks for
        assert gif.n_frames > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--inpaint a.png --mask mask.png --sampler ddpm",
        "--interpolate a.png b.png --interpolation stochastic --sampler ddpm",
    ],
)
def test_an_image_does_not_depend_on_its_batch(draw, flags):
    together, alone = (draw(f"--num 5 {flags} --batch-size {n}") for n in (5, 2))
    assert np.abs(together.astype(int) - alone).max() <= 1  # measured: 0


@pytest.mark.slow
def test_a_lower_strength_stays_closer_to_the_picture(draw, pictures):
    image = read_pixels(pictures / "a.png").astype(int)
    weak, strong = (
        np.abs(draw(f"--num 4 --image a.png --strength {strength}") - image).mean()
        for strength in (0.25, 1)
    )
    # Measured: 5.3 and 25 of 255.
    assert weak < strong / 4


@pytest.mark.slow
@pytest.mark.guard
def test_stochastic_interpolation_is_a_row_from_one_picture_to_the_other(draw, pictures):
    a, b = (read_pixels(pictures / f"{name}.png").astype(int) for name in "ab")
    row = draw("--num 4 --interpolate a.png b.png --interpolation stochastic --strength 0.2")
    to_a, to_b = (np.abs(row.astype(int) - end).mean((1, 2, 3)) for end in (a, b))
    # Measured: 0.9, 29, 59, 88 of 255, and the same back.
    assert (np.diff(to_a) > 0).all()
    assert (np.diff(to_b) < 0).all()
    assert max(to_a[0], to_b[-1]) < to_a[-1] / 4


@pytest.mark.slow
def test_the_ends_of_a_ddim_interpolation_depend_only_on_the_pictures(draw):
    """A row of four has the same ends as a row of two, and as a row in reverse."""
    row, ends, back = (
        draw(f"--interpolate {pair} --num {num}")
        for pair, num in (("a.png b.png", 4), ("a.png b.png", 2), ("b.png a.png", 2))
    )
    np.testing.assert_array_equal(row[[0, -1]], ends)
    np.testing.assert_array_equal(back[::-1], ends)
    assert np.abs(np.diff(row.astype(int), axis=0)).max((1, 2, 3)).min() > 0


def test_pictures_and_masks_are_cropped_and_resized_like_the_data(pictures):
    image, fill = read_with_mask(pictures / "large.png", pictures / "large_mask.png", (8, 8, 3))
    assert (image.shape, fill.shape) == ((8, 8, 3), (8, 8, 1))
    assert fill[:4].all()
    assert not fill[4:].any()
    assert read_image(pictures / "large.png", (16, 20, 1)).shape == (16, 20, 1)
    with pytest.raises(UserError, match=r"large.png is 20x16, but .* are 10x16: resize it"):
        read_image(pictures / "large.png", (16, 10, 1))


def test_pictures_are_read_like_the_images_of_the_run_and_masks_are_not(tmp_path):
    """Here, 4095 is white in a picture of 16 bits."""
    for name, shades in (("a", [0, 4095]), ("mask", [255, 0])):
        values = np.tile(np.array(shades, np.uint16 if name == "a" else np.uint8), (2, 1))
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    data = SourceConfig(max_value=4095, crop="random")
    image, fill = read_with_mask(tmp_path / "a.png", tmp_path / "mask.png", (2, 2, 1), data)
    assert image[..., 0].tolist() == [[0, 255]] * 2
    assert fill[..., 0].tolist() == [[True, False]] * 2
    squeezed = read_image(tmp_path / "a.png", (2, 2, 1), SourceConfig(max_value=8190))
    assert squeezed.max() == 128
    with pytest.raises(UserError, match="go up to 255, but white is 4095"):
        read_image(tmp_path / "mask.png", (2, 2, 1), data)


@pytest.fixture(scope="module")
def labelled_run(make_config, tmp_path_factory):
    """A run with ten classes and a label for none, which also learns its variance."""
    from jax_ddpm.jobs.train import train

    folder = tmp_path_factory.mktemp("runs") / "labelled"
    train(
        make_config(
            folder,
            model={"num_classes": 11},
            diffusion={"label_dropout": 0.3, "variance": "learned_range", "objective": "hybrid"},
        )
    )
    return folder


@pytest.mark.slow
def test_guidance_changes_the_images_of_a_class(draw, labelled_run):
    def images(flags):
        return draw(f"--num 4 --label 3 --no-clip-x-0 {flags}", labelled_run).astype(int)

    plain = images("")
    assert np.abs(images("--guidance 1") - plain).max() <= 1  # measured: 0
    assert np.abs(images("--guidance 4") - plain).max() > 1
    outside = images("--guidance 4 --guidance-interval 7 7")  # which the grid does not visit
    assert np.abs(outside - plain).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--inpaint a.png --mask mask.png --sampler ddpm --repaint-jump 1 --dtype float64",
        "--interpolate a.png b.png --label 2",
        "--interpolate a.png b.png",
        "--image a.png --guidance 2 --guidance-rescale 0.7 --sampler ddpm",
    ],
)
def test_editing_works_with_classes_guidance_and_a_learned_variance(draw, labelled_run, flags):
    found = draw(f"--num 3 {flags}", labelled_run)
    assert found.shape == (3, 8, 8, 1)
    assert len(np.unique(found)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "ddpm --steps 8"])
def test_a_classifier_pulls_images_its_way(draw, sampler):
    """The classifier likes pixels close to the number of the class: 0 is grey and 1 is white."""
    grey, white = (
        draw(f"--num 8 --sampler {sampler} --classifier guide.py:bright --guidance 2 --label {n}")
        for n in (0, 1)
    )
    plain = draw(f"--num 8 --sampler {sampler}")
    assert white.mean() > grey.mean() + 10
    assert np.abs(grey - 127.5).mean() < 0.9 * np.abs(plain - 127.5).mean()


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--inpaint a.png", "--inpaint IMAGE and --mask MASK need each other"),
        ("--mask mask.png", "--inpaint IMAGE and --mask MASK need each other"),
        (
            "--image a.png --inpaint a.png --mask mask.png",
            "--inpaint and --image cannot be combined",
        ),
        ("--image a.png --interpolate a.png b.png", "--image and --interpolate cannot be"),
        ("--inpaint a.png --mask wide.png", "wide.png is 9x8, but --inpaint .*a.png is 8x8"),
        ("--inpaint a.png --mask black.png", "black.png has no white pixel"),
        ("--inpaint a.png --mask nowhere.png", "nowhere.png cannot be read as a picture"),
        ("--image text.png", "text.png cannot be read as a picture"),
        ("--image a.png --strength 0", "--strength is 0, but it must be above 0"),
        ("--image a.png --strength 1.5", "--strength is 1.5"),
        ("--image a.png --strength 0.1 --spacing trailing", "strength 0.1 of T = 8: take more"),
        ("--strength 0.5", "--strength 0.5 needs --image"),
        ("--interpolate a.png b.png --strength 0.5", "--strength 0.5 needs --image"),
        ("--interpolation ddim", "--interpolation ddim needs --interpolate A B"),
        ("--interpolate a.png b.png --num 1", "--num is 1, but --interpolate needs at least 2"),
        ("--interpolate a.png b.png --sampler ddpm", "--sampler ddpm: interpolation ddim needs"),
        ("--interpolate a.png b.png --eta 0.5", "--eta 0.5: interpolation ddim needs"),
        ("--repaint-jump 2", "need --inpaint IMAGE --mask MASK"),
        ("--inpaint a.png --mask mask.png --repaint-jump 4", "between 1 and 3"),
        ("--inpaint a.png --mask mask.png --repaint-jump 1 --repaint-resample 0", "at least 1"),
        (
            "--inpaint a.png --mask mask.png --repaint-jump 1 --sampler dpmpp_2m",
            "which --sampler dpmpp_2m cannot",
        ),
        ("--guidance 3", "guidance 3: this run was trained without label dropout"),
        ("--guidance -1", "guidance is -1"),
        ("--guidance-interval 0 3", "guidance-interval is .* left out without --guidance"),
        ("--guidance-rescale 0.7", "guidance-rescale is 0.7, but it must be 0 without --guidance"),
        ("--guidance 2 --guidance-interval 5 3", "two timesteps between 0 and 7"),
        ("--classifier guide.py:bright", "--classifier needs --label N"),
        ("--classifier guide.py:bright --label 0 --guidance-rescale 0.5", "without a classifier"),
        ("--classifier guide --label 0", "must name a file and a function"),
        ("--classifier nofile.py:bright --label 0", "there is no file .*nofile.py"),
        ("--classifier guide.py:dark --label 0", "guide.py has no function dark"),
        ("--classifier guide.py:number --label 0", "guide.py has no function number"),
        ("--classifier broken.py:a --label 0", "ModuleNotFoundError: No module named"),
        ("--classifier guide.py:bad_shape --label 0", "for two images it returns"),
        ("--classifier guide.py:raises --label 0", "KeyError: 'lost'"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_any_work(draw, monkeypatch, flags, message):
    def forbid_work(*args, **kwargs):
        raise AssertionError("it began to work before it checked the flags")

    for step in ("load_params", "make_generate_fn"):
        monkeypatch.setattr(generate, step, forbid_work)
    with pytest.raises(UserError, match=message):
        draw(flags)


def test_the_guidance_in_a_runs_own_settings_is_checked_with_the_run():
    def config(dropout, **sample):
        plain = Config()
        model = replace(plain.model, num_classes=11)
        diffusion = replace(plain.diffusion, label_dropout=dropout)
        return replace(plain, model=model, diffusion=diffusion, sample=SampleConfig(**sample))

    validate(config(0.1, guidance=3.0, guidance_interval=(100, 700), guidance_rescale=0.7))
    with pytest.raises(UserError, match="trained without label dropout"):
        validate(config(0.0, guidance=3.0))
    with pytest.raises(UserError, match=r"guidance-rescale is 1\.5"):
        validate(config(0.1, guidance=3.0, guidance_rescale=1.5))


def test_the_flags_that_other_programs_use_exist():
    line = (
        "run --guidance 3.0 --guidance-interval 100 700 --guidance-rescale 0.7 --inpaint i.png "
        "--mask m.png --repaint-jump 10 --repaint-resample 10 --trajectory"
    )
    parsed = command.read(line.split())
    expected = {"guidance": 3, "guidance_interval": (100, 700), "guidance_rescale": 0.7}
    assert parsed.changes("settings") == expected
    assert read_edit(parsed.flags.edit) == Inpaint(Path("i.png"), Path("m.png"), (10, 10))
    assert parsed.flags.job.trajectory
