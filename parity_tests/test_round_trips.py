"""Random networks of every architecture leave for the peer's own class and compute the same."""

import inspect
import json

import jax
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jax_ddpm.interop.network import make_apply
from jax_ddpm.jobs.translate import fill_channels, translate
from parity_tests.comparing import QUICK, draws, to_jax, to_torch
from tests.shared.networks import NETWORKS, make_run
from torch_ref.annotated import AnnotatedUNet
from torch_ref.annotated_ws import AnnotatedWSUNet
from torch_ref.openai import UNetModel
from torch_ref.pulfer import PulferUNet
from torch_ref.unet import UNet

# Each example traces networks for seconds: there are few, and they are not made simpler.
FEW = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=HealthCheck,
    phases=[Phase.generate],
)
THEIRS = "the peers' own code (twins, and diffusers)"
CLASSES = {
    "torch_ref": UNet,
    "diffusers": UNet2DModel,
    "guided_diffusion": UNetModel,
    "improved_diffusion": UNetModel,
    "annotated": AnnotatedUNet,
    "annotated_layernorm": AnnotatedUNet,
    "annotated_ws": AnnotatedWSUNet,
    "pulfer": PulferUNet,
}


def build(source, arguments):
    """Build their network; the twins' own words say which version of a text they are."""
    make = CLASSES[source]
    if source == "annotated_layernorm":
        arguments["layer"] = True
    if source == "annotated_ws":
        arguments["divide"] = arguments.pop("weight_standardization") == "divide"
    known = inspect.signature(make.__init__).parameters
    return make(**{name: value for name, value in arguments.items() if name in known})


@pytest.mark.slow
@pytest.mark.parametrize("source", CLASSES)
def test_their_class_computes_the_same(compare, source):
    @FEW
    @given(NETWORKS[source], st.integers(0, 1000))
    def check(config, seed):
        run, _, params = make_run(source, config, 0.2, seed)
        found = translate(run, params, source)
        theirs = build(source, json.loads(json.dumps(found.arguments))).double().eval()
        tensors = {name: torch.tensor(array) for name, array in found.state_dict.items()}
        theirs.load_state_dict(tensors)
        last = (
            0 if source == "diffusers" else 1
        )  # diffusers embeds t in float32, which is exact at 0
        x, t = draws((2, *run.image_shape), "float64", seed), np.array([0, last])
        classes = run.config.model.num_labels
        labels = [] if classes is None else [np.array([classes - 1, 0])]
        with torch.no_grad():
            out = theirs(to_torch(x), *(torch.from_numpy(a) for a in (t, *labels)))
        expected = to_jax(getattr(out, "sample", out))
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
        network_args = {"label": labels[0]} if labels else {}
        apply = jax.jit(make_apply(fill_channels(run)), compiler_options=QUICK)
        compare("U-Net", apply(wide, x, t, **network_args), expected, "float64")

    check()
