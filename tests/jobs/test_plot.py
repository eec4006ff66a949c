from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_ddpm.config.jobs import ChainSettings, FigureData
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import plot
from jax_ddpm.jobs.plot import (
    diffuse,
    list_chains,
    list_tables,
    plot_data,
    plot_forward,
    plot_schedules,
)
from jax_ddpm.process.schedules import linear_betas, make_schedule


def read_size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_the_tables_follow_the_tutorials_formulas():
    schedule = make_schedule(linear_betas(600), dtype=jnp.float64)
    found = list_tables(schedule)
    betas = np.linspace(1e-4, 0.02, 600)
    np.testing.assert_allclose(found["alphas"], 1 - betas)
    np.testing.assert_allclose(found["sqrt_recip_alphas"], (1 - betas) ** -0.5)
    np.testing.assert_allclose(found["sqrt_alphas_cumprod"] ** 2, np.cumprod(1 - betas))


def test_several_schedules_share_one_figure(tmp_path):
    assert read_size(
        plot_schedules(
            tmp_path / "s.png",
            chain=ChainSettings(num_timesteps=30),
            schedules=("linear", "cosine"),
        )
    ) > (900, 600)


def test_an_invalid_schedule_gets_one_sentence(tmp_path):
    with pytest.raises(UserError, match="linear_rescaled with T = 20"):
        plot_schedules(tmp_path / "s.png", ChainSettings(num_timesteps=20), ("linear_rescaled",))
    assert not (tmp_path / "s.png").exists()


def test_the_forward_process_of_your_own_picture_is_drawn(tmp_path):
    Image.new("RGB", (9, 7), "red").save(tmp_path / "mine.png")
    wide = read_size(
        plot_forward(tmp_path / "f.png", image=tmp_path / "mine.png", steps=(0, 10, 999))
    )
    assert wide[0] > 3 * wide[1]  # one row of four pictures


def test_the_forward_process_of_the_data_is_drawn_at_percentages(tmp_path, capsys):
    plot_forward(tmp_path / "f.png", num=2, image_size=14)
    assert "t = 249, 499, 749, 999 of T = 1000" in capsys.readouterr().out


def test_small_percentages_are_the_first_timestep(tmp_path, capsys):
    plot_forward(tmp_path / "f.png", num=1, percent=(0, 0.05, 0.1, 58))
    assert "t = 0, 0, 0, 579 of T = 1000" in capsys.readouterr().out


def test_a_step_outside_the_chain_gets_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--steps is 1000, but it must be between 0 and 999"):
        plot_forward(tmp_path / "f.png", steps=(1000,))


def test_pictures_lose_their_content_along_the_chain():
    schedule = make_schedule(linear_betas(1000))
    black = np.zeros((1, 32, 32, 1), np.uint8)
    noised = diffuse(schedule, black, (0, 100, 999), seed=0).astype(float)
    means = noised.mean(axis=(0, 2, 3, 4))
    assert means[0] < 3
    assert means[0] < means[1] < means[2]
    assert 110 < means[2] < 145  # clipped noise around the middle of the range


@pytest.mark.parametrize("num_timesteps", [-5, 0, 10**9])
def test_a_chain_of_impossible_length_is_refused(tmp_path, num_timesteps):
    with pytest.raises(UserError, match=f"--num-timesteps is {num_timesteps}, .* between 1 and"):
        plot_schedules(tmp_path / "s.png", ChainSettings(num_timesteps=num_timesteps))


def test_the_figures_of_a_preset_end_in_pure_noise_if_it_does(monkeypatch, tmp_path):
    """The preset's own schedule is rescaled; a schedule that is named is not."""
    noise = replace(PRESETS["fashion-cpu"].diffusion, zero_terminal_snr=True)
    presets = {"noise": replace(PRESETS["fashion-cpu"], diffusion=noise)}
    monkeypatch.setattr(plot, "find_preset", presets.get)
    drawn = {}
    monkeypatch.setattr(plot, "save_curves", lambda out, curves: drawn.update(curves))
    plot_schedules(tmp_path / "s.png", ChainSettings("noise"))
    assert drawn["alphas_cumprod"]["cosine"][-1] == 0
    plot_schedules(tmp_path / "s.png", ChainSettings("noise"), ["cosine"])
    assert drawn["alphas_cumprod"]["cosine"][-1] > 0


@pytest.mark.parametrize("name", ["x.txt", "x.jpg", "x"])
@pytest.mark.parametrize("draw", [plot_schedules, plot_forward])
def test_a_figure_is_a_png(tmp_path, draw, name):
    with pytest.raises(UserError, match=r"--out is .*, but it must be a file that ends in \.png"):
        draw(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": (3,), "percent": (50,)}, "--steps and --percent each choose the timesteps"),
        ({"image": Path("a.png"), "num": 2}, "--num 2 counts pictures from the data"),
        ({"num": 0}, "--num is 0, but it must be at least 1"),
    ],
)
def test_flags_of_a_figure_that_would_have_no_effect_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        plot_forward(tmp_path / "f.png", **settings)


def test_the_numbers_of_a_chain_go_to_the_schedules_that_have_them():
    chain = ChainSettings(num_timesteps=9, beta_end=0.1, cosine_s=0.2)
    linear, cosine = list_chains(chain, ("linear", "cosine"))
    assert (linear.beta_end, linear.cosine_s) == (0.1, None)
    assert (cosine.beta_end, cosine.cosine_s) == (None, 0.2)


def test_a_number_that_no_schedule_has_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"cosine, .* with T = 1000: beta_end 0\.1 has no effect on cos"
    ):
        plot_schedules(tmp_path / "s.png", ChainSettings(beta_end=0.1))


def test_betas_from_a_file_are_drawn(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("0.1 0.2 0.3")
    chain = ChainSettings(betas_file=tmp_path / "mine.txt")
    plot_forward(tmp_path / "f.png", chain, num=1, steps=(2,))
    assert "t = 2 of T = 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="--schedules has no effect with --betas-file"):
        plot_schedules(tmp_path / "s.png", chain, ("linear",))


def test_the_batch_that_training_takes_is_drawn(tmp_path, capsys):
    np.save(tmp_path / "grey.npy", np.full((20, 8, 8, 1), 255, np.uint8))
    data = FigureData(path=tmp_path / "grey.npy")
    assert read_size(plot_data(tmp_path / "d.png", data=data, num=4)) == (118, 118)
    assert "4 of the 16 images of step 1, float32 [16, 8, 8, 1], 1 to 1" in capsys.readouterr().out
