import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop.unwrap import unwrap

BARE = {"conv_in.weight": np.ones((2, 3)), "mid.block.bias": np.zeros(4)}
AVERAGE = {name: value + 1 for name, value in BARE.items()}


def add_prefix(prefix, tensors=BARE):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "given",
    [
        BARE,
        add_prefix("module."),
        add_prefix("model."),
        add_prefix("network."),
        add_prefix("ema_model."),
        add_prefix("module.model."),
        add_prefix("_orig_mod.module."),
        {"model": BARE, "opt": {"state": {}}, "step": 3},
        {"state_dict": add_prefix("module."), "epoch": 3},
        add_prefix("model.") | {"betas": np.ones(5), "loss_weight": np.ones(5)},
        add_prefix("ema_model.", BARE)
        | add_prefix("online_model.", AVERAGE)
        | {"initted": np.array(True)},
        {
            "model": add_prefix("model.", AVERAGE),
            "ema": add_prefix("ema_model.model.") | {"step": np.ones(())},
        },
        {f"model/{name}/ExponentialMovingAverage": value for name, value in BARE.items()}
        | {f"model/{name}": value for name, value in AVERAGE.items()},
    ],
)
def test_wrappers_are_stripped_and_the_average_wins(given):
    found = unwrap(given, buffers=("betas", "loss_weight"))
    found = {name.removeprefix("model/"): value for name, value in found.items()}
    assert found.keys() == BARE.keys()
    for name, value in BARE.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_state_of_tensorflows_optimiser_is_skipped():
    given = {
        "model/conv/W": np.ones(2),
        "model/conv/W/Adam": np.ones(2),
        "beta1_power": np.ones(()),
    }
    assert list(unwrap(given, ())) == ["model/conv/W"]


def test_a_name_that_only_begins_like_a_wrapper_stays():
    given = BARE | add_prefix("model.", {"a.weight": np.ones(1)})
    assert unwrap(given, ()).keys() == given.keys()


@pytest.mark.parametrize("given", [{}, {"step": 3, "config": {}}, {"betas": np.ones(3)}])
def test_files_without_weights_are_refused(given):
    with pytest.raises(UserError, match="no weights among"):
        unwrap(given, ("betas",))
