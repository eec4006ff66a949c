"""The flags of OpenAI's scripts describe a run."""

from pathlib import Path

import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop.facts import Question, merge
from jax_ddpm.interop.openai_facts import describe
from jax_ddpm.interop.source import Source

FLAGS = {
    "image_size": 32,
    "num_channels": 128,
    "learn_sigma": True,
    "predict_xstart": False,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
    "rescale_timesteps": False,
    "timestep_respacing": "250",
    "use_kl": False,
}


def find(describe=describe, flags=FLAGS, outputs=6, typed=()):
    tensors = {
        "model.input_blocks.0.0.weight": np.ones((8, 3, 3, 3)),
        "model.out.2.weight": np.ones((outputs, 8, 3, 3)),
    }
    documents = {} if flags is None else {"flags.json": flags}
    source = Source(Path("w.pt"), tensors, documents, "flags.json" if documents else None)
    return merge(describe(Question(source, dict.fromkeys(typed, 1))))


def list_values(facts):
    return {what: fact.value for what, fact in facts.items()}


def test_flags_become_settings():
    assert list_values(find()) == {
        "data.image_size": 32,
        "diffusion.num_timesteps": 4000,
        "diffusion.schedule": "cosine",
        "diffusion.prediction_type": "eps",
        "diffusion.rescale_timesteps": False,
        "diffusion.variance": "learned_range",
        "diffusion.objective": "hybrid",
        "sample.respacing": "250",
    }
    other = {"noise_schedule": "linear", "predict_xstart": True, "sigma_small": True}
    found = list_values(find(flags=other | {"learn_sigma": False, "use_kl": True}, outputs=3))
    assert found == {
        "diffusion.schedule": "linear_rescaled",
        "diffusion.prediction_type": "x_0",
        "diffusion.variance": "fixed",
        "diffusion.objective": "vlb",
        "sample.variance": "fixed_small",
        "sample.respacing": None,
    }


@pytest.mark.parametrize(
    ("outputs", "variance", "objective"), [(6, "learned_range", "hybrid"), (3, "fixed", "simple")]
)
def test_without_flags_the_channels_tell_the_variance(outputs, variance, objective):
    facts = find(describe, None, outputs)
    assert list_values(facts) == {
        "diffusion.variance": variance,
        "diffusion.objective": objective,
    }
    assert facts["diffusion.variance"].origin == "shape of out.2.weight"


def test_chosen_steps_replace_the_respacing():
    assert "sample.respacing" not in find(typed=["sample.num_steps"])


@pytest.mark.parametrize(
    ("flags", "outputs", "sentence"),
    [
        ({"learn_sigma": False}, 6, "shape of out.2.weight says .* learned_range, but flags.json"),
        ({"noise_schedule": "cosin"}, 6, "noise_schedule is 'cosin', .* did you mean 'cosine'"),
        ({"diffusion_steps": "many"}, 6, "diffusion_steps is many, but it must be a number of 1"),
        ({"predict_xstart": "yes"}, 6, "predict_xstart is yes, but it must be true or false"),
    ],
)
def test_contradictions_and_impossible_flags_are_refused(flags, outputs, sentence):
    with pytest.raises(UserError, match=sentence):
        find(flags=flags, outputs=outputs)
