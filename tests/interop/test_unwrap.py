"""Weights are found in any container and behind any prefix, or refused with their paths."""

import jax
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.interop.tree import find_tensor
from jax_ddpm.interop.unwrap import find_network, is_average
from jax_ddpm.models import LucidrainsConfig, UNetConfig, parameter_shapes

PEER = PEERS["lucidrains"]


def draw(config, source):
    numbers = np.random.default_rng(0)
    shapes = parameter_shapes(config)
    params = jax.tree.map(lambda a: numbers.normal(size=a.shape).astype(np.float32), shapes)
    return to_state_dict(params, PEERS[source])


BARE = draw(
    LucidrainsConfig(dim=4, dim_mults=(1,), channels=1, attn_heads=1, attn_dim_head=2),
    "lucidrains",
)
AVERAGE = {name: value + 1 for name, value in BARE.items()}
LIST = list(AVERAGE.values())
BUFFERS = {"betas": np.ones(5), "loss_weight": np.ones(5)}
OPTIMIZER = {"state": {0: {"exp_avg": np.ones((4, 1, 7, 7))}}, "param_groups": [{"params": [0]}]}
OTHERS = {"vgg.0.weight": np.ones((3, 3)), "discriminator.net.bias": np.ones(3)}
BESIDE = {"epoch": 3, "args": object(), "losses": [0.5, 0.25], "best": np.float32(0.1)}


def prepend(prefix, tensors=BARE):
    return {prefix + name: value for name, value in tensors.items()}


def assert_found(found, expected):
    assert found.tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found.tensors[name], value)


PREFIXES = (
    "module. model. network. ema_model. module.model. _orig_mod.module. unet. denoiser. "
    "diffusion.model. net.model.module. model.diffusion_model. 0."
)


@pytest.mark.parametrize("prefix", ["", *PREFIXES.split()])
def test_any_common_prefix_is_stripped(prefix):
    found = find_network(prepend(prefix) | OTHERS if prefix else BARE, PEER)
    assert_found(found, BARE)
    assert found.path == prefix.rstrip(".")


CONTAINERS = (
    "model state_dict network net unet params weights model_state model_state_dict generator "
    "some_key_that_nobody_uses"
)


@pytest.mark.parametrize("key", CONTAINERS.split())
def test_any_container_is_opened(key):
    assert_found(find_network({key: prepend("module."), "opt": OPTIMIZER} | BESIDE, PEER), BARE)


AVERAGES = (
    "ema ema_model model_ema ema_net ema_params ema_state_dict shadow shadow_params average "
    "averaged_model EMA modelEma ema_0.9999 ema.shadow ema.model ema.ema_model.model swa_model"
)


@pytest.mark.parametrize("path", AVERAGES.split())
def test_the_average_wins_unless_the_raw_weights_are_wanted(path):
    keys = [path] if path == "ema_0.9999" else path.split(".")
    average = prepend("model.", AVERAGE) | BUFFERS
    for key in reversed(keys):
        average = {key: average}
    given = {"model": prepend("module.") | BUFFERS, "optimizer": OPTIMIZER} | average | BESIDE
    found = find_network(given, PEER)
    assert_found(found, AVERAGE)
    assert found.describe() == f"the average at {path}.model"
    assert_found(find_network(given, PEER, "average"), AVERAGE)
    assert_found(find_network(given, PEER, "raw"), BARE)
    assert_found(find_network(given, PEER, prefix="model.module"), BARE)


@pytest.mark.parametrize(
    "given",
    [
        {"model": BARE, "ema": {"decay": 0.99, "shadow_params": LIST, "collected_params": None}},
        {"state_dict": prepend("model."), "ema": {"shadow_params": dict(enumerate(LIST))}},
        {"model": BARE, "ema": {"shadow_params": LIST, "collected_params": list(BARE.values())}},
        {
            "state_dict": prepend("model.net.")
            | {f"model_ema.net{n.replace('.', '')}": a for n, a in AVERAGE.items()}
            | {"model_ema.decay": np.ones(())}
        },
        [prepend("module."), OPTIMIZER, 3, 1000, AVERAGE],
        dict(enumerate([prepend("module."), OPTIMIZER])) | {"4": AVERAGE, 2: 3},
        prepend("ema_model.model.", AVERAGE)
        | prepend("online_model.model.")
        | {"initted": np.array(True)},
        {
            "state_dict": prepend("net.") | prepend("net_ema.", AVERAGE) | OTHERS,
            "hyper_parameters": {"lr": 0.1},
        },
        {"ema": {"ema_model": AVERAGE, "online_model": BARE}, "model": prepend("model.")},
    ],
    ids=[
        "torch_ema",
        "numbered",
        "torch_ema in use",
        "LitEma",
        "ermongroup",
        "ermongroup, read",
        "ema_pytorch",
        "lightning",
        "copies",
    ],
)
def test_the_files_of_trainers_are_understood(given):
    assert_found(find_network(given, PEER), AVERAGE)
    assert_found(find_network(given, PEER, "raw"), BARE)


TWO = {"ema_0.99": AVERAGE, "ema_0.9": prepend("model.", BARE)}


def test_of_several_sets_one_must_be_chosen():
    with pytest.raises(UserError, match=r"several .* average at ema_0.99, the average at ema_0.9"):
        find_network(TWO, PEER)
    assert_found(find_network(TWO, PEER, prefix="ema_0.99"), AVERAGE)
    assert_found(find_network(TWO, PEER, prefix="ema_0.9."), BARE)
    with pytest.raises(UserError, match=r"several sets .* at a, the weights at b.* --prefix a"):
        find_network({"a": BARE, "b": AVERAGE}, PEER)
    assert_found(find_network({"a": BARE, "b": BARE}, PEER), BARE)  # copies


@pytest.mark.parametrize(
    ("given", "arguments", "sentence"),
    [
        ({"model": BARE}, {"weights": "average"}, "no average weights, only the weights at model"),
        ({"ema": BARE}, {"weights": "raw"}, "no raw weights, only the average at ema"),
        (TWO, {"prefix": "model_ema"}, "no weights of the network are at model_ema, only the av"),
        ({"model": BARE}, {"weights": "ema"}, "weights is 'ema', but it must be average or raw"),
        (
            {"model": BARE, "ema": {"shadow_params": LIST[1:]}},
            {},
            "average at ema does not fit .* --weights raw",
        ),
        ({"model": BARE, "ema": {"other": np.ones(3)}}, {}, "the average at ema does not fit"),
        ({}, {}, "no weights among nothing"),
        ({"step": 3, "config": {}}, {}, "no weights among step, config"),
        ({"betas": np.ones(3)}, {}, "no weights among betas"),
        ({"a": {"b.c": np.ones(2)}, "a.b": {"c": np.ones(2)}}, {}, "two tensors are called a.b.c"),
    ],
)
def test_what_cannot_be_chosen_is_refused(given, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        find_network(given, PEER, **arguments)


def test_an_average_that_does_not_fit_does_not_hide_the_raw_weights():
    given = {"model": BARE, "ema": {"shadow_params": LIST[1:]}}
    assert_found(find_network(given, PEER, "raw"), BARE)


def test_a_mapping_that_contains_itself_is_refused():
    given = {"a": np.ones(2)}
    given["model"] = given
    with pytest.raises(UserError, match="nests mappings or lists endlessly"):
        find_network(given, PEER)


def test_a_name_that_only_begins_like_a_wrapper_stays():
    given = BARE | prepend("model.", {"a.weight": np.ones(1)})
    assert find_network(given, PEER).tensors.keys() == given.keys()
    with pytest.raises(UserError, match=r"weight model.a.weight .* not in this network"):
        from_torch(given, "lucidrains")


def test_incomplete_weights_are_found_for_an_error_that_names_the_tensor():
    given = {"ema": prepend("model.", AVERAGE), "opt": OPTIMIZER} | BESIDE
    del given["ema"]["model.init_conv.weight"]
    with pytest.raises(UserError, match=r"there is no init_conv.weight"):
        from_torch(given, "lucidrains")


def test_from_torch_takes_the_same_choices():
    given = {"model": BARE, "ema": prepend("model.", AVERAGE)}
    arguments = {"dim": 4, "dim_mults": (1,), "attn_heads": 1, "attn_dim_head": 2}
    average = from_torch(given, "lucidrains", arguments)
    raw = from_torch(given, "lucidrains", arguments, weights="raw")
    assert (average.origin, raw.origin) == ("the average at ema.model", "the weights at model")
    ours = lambda network: np.asarray(network.params["conv_in"]["bias"])  # noqa: E731
    np.testing.assert_array_equal(ours(raw), BARE["init_conv.bias"])
    np.testing.assert_array_equal(ours(average), AVERAGE["init_conv.bias"])
    by_prefix = from_torch(given, "lucidrains", arguments, prefix="model")
    assert by_prefix.origin == "the weights at model"


UNET = UNetConfig(4, (1,), 1, (), 0.0, 2, 1, 1)


def test_tensorflows_averages_win_and_its_optimiser_is_skipped():
    bare = draw(UNET, "ho")
    average = {f"{name}/ExponentialMovingAverage": value + 1 for name, value in bare.items()}
    slots = {f"{name}/Adam_1": value for name, value in bare.items()} | {"beta1_power": np.ones(1)}
    without = {name.removeprefix("model/"): value for name, value in bare.items()}
    found = find_network(bare | average | slots, PEERS["ho"])
    assert_found(found, {name: value + 1 for name, value in without.items()})
    assert_found(find_network(bare | slots, PEERS["ho"]), without)


def test_an_autoencoder_beside_a_network_is_not_taken_for_it():
    """Latent diffusion's encoder has the names of Ho et al.'s U-Net, without times."""
    bare = draw(UNET, "torch_ref")
    encoder = {n: a for n, a in bare.items() if n.startswith(("conv", "down", "norm"))}
    found = find_network(prepend("vae.encoder.", encoder) | prepend("unet.", bare), PEERS["ho"])
    assert_found(found, bare)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model_ema.module", True),
        ("ExponentialMovingAverage.model", True),
        ("ema.online_model.model", False),
        ("ema.collected_params", False),
        ("optimizer.ema", False),
        ("schema.model", False),
    ],
)
def test_the_last_telling_word_of_a_path_means_an_average(path, expected):
    assert is_average(path) == expected


def test_a_tensor_is_found_by_its_name_at_any_depth():
    given = [{"a": {"model.betas": np.arange(3)}}]
    np.testing.assert_array_equal(find_tensor(given, "betas"), np.arange(3))
    assert find_tensor(given, "alphas") is None
