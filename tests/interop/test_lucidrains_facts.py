"""What lucidrains' files say, and which of the package's classes are refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.interop.facts import Missing, Question, merge
from jax_ddpm.interop.lucidrains_facts import find_objective, find_snr
from jax_ddpm.interop.source import Source
from jax_ddpm.models import LucidrainsConfig, LucidrainsV0Config, parameter_shapes
from jax_ddpm.process.schedules import BETAS

PEER = PEERS["lucidrains"]
BUFFERS = {"betas": BETAS["sigmoid_cumprod"](50).astype(np.float32)}


def make_state(config, prefix="model."):
    shapes = parameter_shapes(config)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    return {prefix + k: v for k, v in to_state_dict(params, PEER.of(config)).items()}


SMALL = LucidrainsConfig(dim=8, dim_mults=(1, 2), channels=3)
PLAIN = make_state(SMALL)


def describe(tensors, arguments=None):
    documents = {} if arguments is None else {"m.json": arguments}
    source = Source(Path("m.pt"), tensors, documents, "m.json" if documents else None)
    return merge(PEER.describe(Question(source, {})))


def change(name, array, state=PLAIN):
    return state | {name: np.ones(array, np.float32)}


FOREIGN = [
    ({f"net.{n[6:]}": a for n, a in PLAIN.items()}, "net.init_conv.weight .*ElucidatedDiffusion"),
    (change("log_snr.net.1.net.weight", (1, 1)), "with a learned schedule, .*noise level"),
    (change("model.time_mlp.0.weights", (8,)), "VParamContinuousTime.*noise level"),
    (change("model.time_mlp.7.weight", (8, 8)), "ContinuousTimeGaussianDiffusion"),
    (change("model.to_time_emb.0.weights", (8,)), "KarrasUnet, EDM2's"),
    (change("model.null_classes_emb", (8,)), "classifier_free_guidance"),
    (change("model.mid_transformer.layers.0.0.to_qkv.weight", (8, 8)), "UViT"),
    (change("model.init_conv.weight", (8, 3, 7)), "GaussianDiffusion1D"),
    (change("model.final_conv.weight", (8, 8, 1, 1)), "WeightedObjectiveGaussianDiffusion"),
]


@pytest.mark.parametrize(("tensors", "sentence"), FOREIGN)
def test_classes_that_are_no_chain_of_timesteps_are_refused_by_name(tensors, sentence):
    with pytest.raises(UserError, match=sentence):
        describe({"model": tensors, "version": "2.3.4"})


def test_a_learned_variance_predicts_noise_whatever_the_buffer_says():
    state = make_state(LucidrainsConfig(dim=8, dim_mults=(1, 2), channels=3, learned_variance=True))
    betas = BUFFERS["betas"]
    snr = find_snr(betas, None)
    facts = describe(state | BUFFERS | {"loss_weight": snr / (snr + 1)})
    assert facts["diffusion.variance"].value == "learned_range"
    assert facts["diffusion.variance"].origin == "shape of final_conv.weight"
    assert facts["diffusion.prediction_type"].value == "eps"
    assert facts["diffusion.objective"].value == "hybrid"
    assert from_torch(state, "lucidrains").config.learned_variance


def test_weights_of_no_objective_leave_the_choice_to_the_user():
    weight = np.linspace(0.5, 1, 50)
    fact = describe(PLAIN | BUFFERS | {"loss_weight": weight})["diffusion.prediction_type"]
    assert isinstance(fact.value, Missing) and fact.origin == "tensor loss_weight"


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid_cumprod", "linear_rescaled"])
@pytest.mark.parametrize("num_timesteps", [200, 1000])
def test_every_objective_is_told_in_float32(schedule, num_timesteps):
    betas = BETAS[schedule](num_timesteps)
    product = np.cumprod(1 - betas)
    snr = product / (1 - product)
    stored = find_snr(betas.astype(np.float32), product.astype(np.float32))
    for cap in (None, 5.0):
        capped = snr if cap is None else np.minimum(snr, cap)
        assert find_objective((capped / snr).astype(np.float32), stored) == ("eps", cap)
        assert find_objective(capped.astype(np.float32), stored) == ("x_0", cap)
        assert find_objective((capped / (snr + 1)).astype(np.float32), stored) == ("v", cap)


def test_a_network_of_frequencies_is_only_taken_on_demand():
    config = LucidrainsConfig(dim=8, dim_mults=(1, 2), channels=3, learned_sinusoidal_cond=True)
    state = make_state(config, "")
    fact = describe(state)["diffusion.schedule"]
    assert isinstance(fact.value, Missing) and "noise levels" in fact.value.reason
    assert "diffusion.schedule" not in describe(state, {"learned_sinusoidal_cond": True})


def test_the_period_is_assumed_unless_a_document_tells_it():
    fact = describe(PLAIN)["model.sinusoidal_pos_emb_theta"]
    assert (fact.value, fact.origin) == (10000.0, "assumed")
    fact = describe(PLAIN, {"sinusoidal_pos_emb_theta": 500})["model.sinusoidal_pos_emb_theta"]
    assert (fact.value, fact.origin) == (500, "m.json")


def test_older_networks_between_the_releases_are_refused_in_one_sentence():
    old = make_state(LucidrainsV0Config(dim=8, dim_mults=(1, 2), channels=3), "")
    for name, shape, sentence in (
        ("downs.0.0.mlp.1.weight", (8, 32), "use --source annotated_layernorm"),
        ("time_mlp.1.weight", (32, 1), "noise level"),
    ):
        with pytest.raises(UserError, match=sentence):
            from_torch(change(name, shape, old), "lucidrains")
    modern = {n[6:]: a for n, a in PLAIN.items() if "mem_kv" not in n}
    with pytest.raises(UserError, match=r"release 1\.8"):
        from_torch(modern, "lucidrains")
