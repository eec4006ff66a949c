"""Flags of training that would change nothing are refused."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from jax_ddpm.config.effects import show_flag
from jax_ddpm.config.run import Config
from jax_ddpm.config.train_effects import RULES, require_effects
from jax_ddpm.errors import UserError, flag_name

OTHER = {
    "data.crop": "random",
    "data.resize": "box",
    "diffusion.schedule": "cosine",
    "train.ema_decay": 0.5,
}
# Makes every rule's settings idle at once.
IDLE = {"diffusion": {"betas": (0.1, 0.2)}, "train": {"max_grad_norm": None, "num_epochs": 2}}


def change(config, section, **values):
    return replace(config, **{section: replace(getattr(config, section), **values)})


@pytest.mark.parametrize("name", [name for rule in RULES for name in rule.names])
def test_a_setting_without_effect_is_refused_if_the_user_gave_it(name):
    config = change(change(Config(), "diffusion", **IDLE["diffusion"]), "train", **IDLE["train"])
    form = "half_life" if name == "train.ema_decay" else "constant"
    config = change(config, "train", ema_form=form)
    section, field = name.split(".")
    usual = getattr(getattr(config, section), field)
    value = OTHER[name] if name in OTHER else True if usual is False else (usual or 0) + 1
    config, flag = change(config, section, **{field: value}), flag_name(name)
    with pytest.raises(
        UserError, match=f"^{show_flag(name, value)} has no effect here: it needs --"
    ):
        require_effects(config, [flag])
    require_effects(config, [])  # a preset may have such values
    require_effects(Config(), [flag])  # the usual value asks for nothing


def test_a_switch_is_shown_as_it_is_typed():
    assert show_flag("data.skip_bad", True) == "--data.skip-bad"
    assert show_flag("sample.clip_x_0", False) == "--sample.no-clip-x-0"
    assert show_flag("train.ema_decay", 0.5) == "--train.ema-decay 0.5"


def test_settings_with_an_effect_are_accepted():
    config = change(Config(), "data", name="folder", path=Path("x"), skip_bad=True, image_size=8)
    config = change(config, "diffusion", weighting="p2", p2_gamma=0.5)
    flags = [flag_name(f"data.{field.name}") for field in fields(config.data)]
    require_effects(config, [*flags, "--diffusion.p2-gamma"])
