"""What the buffers of lucidrains' GaussianDiffusion and the names in its files say about a run."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.interop.facts import ASSUMED, Fact, Missing, Question, describe_betas_tensor
from jax_ddpm.interop.tree import Tensors, find_tensor, flatten

# Parts of names that only these classes of the package have -> the classes.
OTHERS = {
    r"(^|\.)net\.init_conv\.weight$": "ElucidatedDiffusion",
    r"(^|\.)log_snr\.net\.": "ContinuousTimeGaussianDiffusion with a learned schedule",
    r"(^|\.)model\.time_mlp\.0\.weights$": "ContinuousTimeGaussianDiffusion or "
    "VParamContinuousTimeGaussianDiffusion",
    r"(^|\.)time_mlp\.7\.weight$": "ContinuousTimeGaussianDiffusion",
    r"(^|\.)to_time_emb\.0\.weights$": "KarrasUnet",
    r"(^|\.)null_classes_emb$": "classifier_free_guidance's Unet",
    r"(^|\.)(unpatchify\.|layers\.\d+\.0\.to_qkv\.)": "simple_diffusion's UViT",
    r"(^|\.)mid_transformer\.": "simple_diffusion's UViT",
}
WHY = {
    "KarrasUnet": "EDM2's network, which is another one",
    "classifier_free_guidance's Unet": "which is another network",
    "simple_diffusion's UViT": "which is another network",
}
NOISE_LEVEL = "whose network is told the noise level, not the timestep"
FOURIER = (
    "the network embeds learned frequencies, which the package's classes use only with noise "
    "levels (ElucidatedDiffusion, ContinuousTimeGaussianDiffusion), not with timesteps"
)
# Weight of the error of x_0 as a function of snr -> the weight of the objective's error.
OBJECTIVES = {
    "eps": lambda weight, snr: weight / snr,
    "x_0": lambda weight, snr: weight,
    "v": lambda weight, snr: weight / (snr + 1),
}
CLOSE = 1e-2  # relative: the buffers are float32, in which 1 - beta keeps few digits near 1
OTHER_NORMS = (1, 7, 1)  # the first release with other norms under the same names


def describe(question: Question) -> list[Fact]:
    """Describe a run from the buffers of GaussianDiffusion and from the names of the network.

    Raises UserError for the classes of the package that are no chain of timesteps, and for networks
    that cannot be converted.
    """
    tensors = flatten(question.source.tensors)
    require_chain(tensors)
    facts = describe_betas_tensor(question)
    facts += _describe_objective(tensors)
    facts += _describe_network(tensors, question)
    return facts


def require_chain(tensors: Tensors) -> None:
    """Raise UserError for what does not belong to a GaussianDiffusion of images."""
    discrete = any(re.search(r"(^|\.)betas$", name) for name in tensors)
    for pattern, name in OTHERS.items():
        found = next((n for n in tensors if re.search(pattern, n)), None)
        if found is not None and not (discrete and name.startswith("Continuous")):
            raise UserError(
                f"{found} belongs to {name}, {WHY.get(name, NOISE_LEVEL)}: only GaussianDiffusion "
                "and LearnedGaussianDiffusion can be converted"
            )
    first = find_tensor(tensors, "init_conv.weight")
    if first is not None and first.ndim == 3:
        raise UserError(
            "init_conv.weight has one dimension less than for images: GaussianDiffusion1D's "
            "sequences cannot be converted"
        )


def _describe_objective(tensors: Tensors) -> Iterator[Fact]:
    """What the network predicts, its variance, and the weights of its training."""
    channels, outputs, name = count_channels(tensors)
    if outputs is not None and outputs == 2 * channels + 2:
        raise UserError(
            f"the network has {outputs} output channels: WeightedObjectiveGaussianDiffusion, which "
            "predicts noise, image and their weights, cannot be converted"
        )
    weight, betas = (find_tensor(tensors, name) for name in ("loss_weight", "betas"))
    if outputs == 2 * channels:
        yield from _describe_learned(f"shape of {name}", betas)
        return
    yield Fact("diffusion.variance", "fixed", f"shape of {name}")
    yield Fact("diffusion.objective", "simple", ASSUMED)
    yield Fact("sample.variance", "fixed_small", ASSUMED)
    if weight is not None and betas is not None:
        yield from _read_weight(tensors, weight, betas)
    elif betas is not None or is_older(tensors):
        yield from _assume_noise(tensors)


def _describe_learned(origin: str, betas: np.ndarray | None) -> Iterator[Fact]:
    """LearnedGaussianDiffusion predicts eps, whatever its `objective` and `loss_weight` say.

    It samples in all steps.
    """
    yield Fact("diffusion.variance", "learned_range", origin)
    yield Fact("diffusion.objective", "hybrid", ASSUMED)
    predicts = ASSUMED if betas is None else "LearnedGaussianDiffusion, which predicts it"
    yield Fact("diffusion.prediction_type", "eps", predicts)
    yield Fact("diffusion.weighting", "constant", ASSUMED)
    yield Fact("diffusion.vb_weight", 0.001, ASSUMED)
    yield Fact("sample.sampler", "ddpm", ASSUMED)
    if betas is not None:
        yield Fact("sample.num_steps", len(betas), ASSUMED)


def _read_weight(tensors: Tensors, weight: np.ndarray, betas: np.ndarray) -> Iterator[Fact]:
    origin = "tensor loss_weight"
    found = find_objective(weight, find_snr(betas, find_tensor(tensors, "alphas_cumprod")))
    if found is None:
        yield Fact(
            "diffusion.prediction_type",
            Missing("it has the weights of no objective of the package"),
            origin,
        )
        return
    prediction_type, gamma = found
    yield Fact("diffusion.prediction_type", prediction_type, origin)
    yield Fact("diffusion.weighting", "snr" if gamma is None else "min_snr", origin)
    if gamma is not None:
        yield Fact("diffusion.min_snr_gamma", gamma, origin)


def _assume_noise(tensors: Tensors) -> Iterator[Fact]:
    """Before 1.5, no buffer tells the objective; its default was pred_noise, the loss absolute."""
    yield Fact("diffusion.prediction_type", "eps", ASSUMED)
    yield Fact("diffusion.loss_type", "l1", ASSUMED)
    weight = find_tensor(tensors, "p2_loss_weight")
    if weight is None or np.allclose(weight, 1, rtol=CLOSE):
        yield Fact("diffusion.weighting", "constant", ASSUMED)
        return
    yield Fact("diffusion.weighting", "p2", "tensor p2_loss_weight")


def find_snr(betas: np.ndarray, alphas_cumprod: np.ndarray | None) -> np.ndarray:
    """The signal-to-noise ratios, from whichever of two tensors in float32 has more digits."""
    product = np.cumprod(1 - np.asarray(betas, np.float64))
    if alphas_cumprod is not None and alphas_cumprod.shape == product.shape:
        product = np.where(product > 0.5, product, np.asarray(alphas_cumprod, np.float64))
    with np.errstate(divide="ignore"):
        return product / (1 - product)


def find_objective(weight: np.ndarray, snr: np.ndarray) -> tuple[str, float | None] | None:
    """Find the prediction type with this `loss_weight`, and the cap of min-SNR or None.

    Without a cap comes first: where every snr is above the cap, a weight has two readings. Returns
    None if it is that of none, or of several with caps.
    """
    weight = np.asarray(weight, np.float64)
    if weight.shape != snr.shape:
        return None
    found = []
    for name, divide in OBJECTIVES.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            of_x_0 = weight / divide(np.ones_like(snr), snr)
        cap = float(of_x_0.max())
        capped = bool(snr.max() > cap * (1 + CLOSE))
        if np.allclose(of_x_0, np.minimum(snr, cap) if capped else snr, rtol=CLOSE, atol=0):
            found.append((name, round(cap, 4) if capped else None))
    found = [each for each in found if each[1] is None] or found
    return found[0] if len(found) == 1 else None


def count_channels(tensors: Tensors) -> tuple[int, int | None, str]:
    """The channels of the input and of the output, and the name of the tensor that tells these."""
    name = "final_conv.1.weight" if is_older(tensors) else "final_conv.weight"
    last, first = find_tensor(tensors, name), find_tensor(tensors, "init_conv.weight")
    channels = None if first is None or first.ndim < 2 else first.shape[1]
    if first is None:  # there is none before the ConvNeXt blocks
        first = find_tensor(tensors, "downs.0.0.ds_conv.weight")
        channels = None if first is None else first.shape[0]
    if channels is None or last is None:
        return 0, None, name
    return channels, last.shape[0], name


def _describe_network(tensors: Tensors, question: Question) -> Iterator[Fact]:
    """What neither names nor shapes of the network tell."""
    given: Mapping[str, Any] | None = question.source.arguments
    fourier, prenorm = (
        find_tensor(tensors, name) is not None
        for name in ("time_mlp.0.weights", "mid_attn.fn.norm.g")
    )
    if fourier and given is None:
        yield Fact("diffusion.schedule", Missing(FOURIER), "tensor time_mlp.0.weights")
    assumed: dict[str, Any] = {}
    if not prenorm and not fourier:
        assumed["sinusoidal_pos_emb_theta"] = 10000.0
    if find_tensor(tensors, "block1.norm.weight") is not None:
        assumed["resnet_block_groups"] = 8
    if find_tensor(tensors, "downs.0.0.ds_conv.weight") is not None:
        assumed["full_mid_attention"] = False
    elif prenorm and not is_older(tensors):
        assumed["cosine_attention"] = _has_strided_convolution(tensors)
        _require_first_norms(question.source.tensors)
    for name, value in assumed.items():
        told = given is not None and name in given
        origin = str(question.source.arguments_name) if told else ASSUMED
        yield Fact(f"model.{name}", given[name] if told and given else value, origin)


def _require_first_norms(file: Any) -> None:
    """Raise UserError for releases whose network differs from 1.5's, with the same names."""
    version = file.get("version") if isinstance(file, Mapping) else None
    numbers = re.findall(r"\d+", version)[:3] if isinstance(version, str) else []
    if tuple(map(int, numbers)) >= OTHER_NORMS:
        raise UserError(
            f"release {version} wrote the file: its network has the names of the one that can be "
            "converted, of 0.27 to 1.7.0, but other norms"
        )


def _has_strided_convolution(tensors: Tensors) -> bool:
    """Whether the network halves height and width by 4x4 convolutions, as it did until 0.31."""
    first = find_tensor(tensors, "downs.0.3.weight")
    return first is not None and first.shape[-1] == 4


def is_older(tensors: Tensors) -> bool:
    """Whether the network is from before 0.19."""
    return find_tensor(tensors, "final_conv.1.weight") is not None
