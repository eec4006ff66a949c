import math
import typing
from dataclasses import fields, is_dataclass, replace

import pytest

from jax_ddpm.config.plain_values import require_plain_value
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.config.run import Config, validate
from jax_ddpm.errors import UserError

# One preset per architecture. Only the first also tests the settings beside the network.
FIRST, *OTHERS = PRESETS.values()
ARCHITECTURES = {type(FIRST.model): FIRST} | {
    type(config.model): config for config in OTHERS if type(config.model) is not type(FIRST.model)
}
BELOW_ZERO = {  # these may be negative
    "--diffusion.log-normal-mean",
    "--model.learned-sinusoidal-dim",  # unused without Fourier features
    "--model.sample-size",  # recorded by diffusers, not used
    "--model.freq-shift",
    "--model.mid-block-scale-factor",
    "--model.num-train-timesteps",  # used with one time embedding only
    "--model.attention-resolutions",  # matches no level
    "--model.resnet-block-groups",  # unused with ConvNeXt blocks
    "--model.num-heads",  # -1: see num-head-channels, or num-heads for upsampling
    "--model.num-heads-upsample",
    "--model.num-head-channels",
}


def find_kind(kind):
    """Find whether a field of this type takes a number, a tuple of numbers, or neither."""
    arguments = typing.get_args(kind)
    if kind in (int, float):
        return "number"
    if typing.get_origin(kind) is tuple:
        return "tuple" if arguments[0] in (int, float) else None
    if typing.get_origin(kind) is typing.Literal:
        return None
    return next((found for found in map(find_kind, arguments) if found), None)


def list_numeric_fields(settings, path=()):
    hints = typing.get_type_hints(type(settings))
    for field in fields(settings):
        value, name = getattr(settings, field.name), (*path, field.name)
        if is_dataclass(value):
            yield from list_numeric_fields(value, name)
        elif kind := find_kind(hints[field.name]):
            yield name, kind, value


def set_value(settings, path, value):
    inner = set_value(getattr(settings, path[0]), path[1:], value) if path[1:] else value
    return replace(settings, **{path[0]: inner})


def list_all_fields():
    for i, config in enumerate(ARCHITECTURES.values()):
        for path, kind, value in list_numeric_fields(config):
            if i == 0 or path[0] == "model":
                flag = f"--{'.'.join(path).replace('_', '-')}"
                yield pytest.param(config, path, kind, value, flag, id=f"{config.preset}{flag}")


@pytest.mark.parametrize(("config", "path", "kind", "before", "flag"), list(list_all_fields()))
def test_every_number_is_accepted_or_refused_in_one_sentence_that_names_its_flag(
    config, path, kind, before, flag
):
    for value in (math.nan, math.inf, -math.inf, 10**12, -(10**30), -1, 0):
        length = len(before) if isinstance(before, tuple) and before else 2
        given = (value,) * length if kind == "tuple" else value
        may_be = abs(value) <= 1 and (value == 0 or flag in BELOW_ZERO)
        try:
            validate(set_value(config, path, given))
        except UserError as error:
            assert flag in str(error)
            assert "\n" not in str(error)
        else:
            assert may_be, f"{flag} {given} was accepted"


def test_the_walk_sees_every_architecture_and_section():
    names = {parameter.values[4] for parameter in list_all_fields()}
    assert len(ARCHITECTURES) == 8
    assert {"--seed", "--data.image-size", "--train.betas", "--sample.churn-max"} <= names
    assert len(names) > 80


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a\0b", "printable"),
        ("x" * 1001, "at most 1000 printable"),
        ("\x1b[2J", "printable"),
        ((1.0, (2.0, math.nan)), "is nan"),
        pytest.param(10**5000, "more than 30 digits", id="huge"),
        ((0,) * 10_001, "10001 values"),
    ],
)
def test_a_value_that_is_not_plain_is_refused(value, message):
    with pytest.raises(UserError, match=f"--x .*{message}"):
        require_plain_value("--x", value)


def test_plain_values_are_accepted():
    for value in (None, True, 2**32, -1.5, "a b/c.png", ("é", (1, 2.0)), Config().folder):
        require_plain_value("--x", value)
