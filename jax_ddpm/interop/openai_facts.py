"""What the flags of OpenAI's scripts and the shapes of their weights say about a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from jax_ddpm.errors import check_choice, require
from jax_ddpm.interop.facts import ASSUMED, Fact, Question
from jax_ddpm.interop.tree import find_tensor

# Their noise_schedule -> ours.
SCHEDULES = {"linear": "linear_rescaled", "cosine": "cosine"}
GRID = ("sample.num_steps", "sample.spacing", "sample.timesteps", "sample.respacing")


def describe(question: Question) -> list[Fact]:
    """Describe a run from its flags in a JSON file and from the channels of its output.

    Raises UserError for values that no flag has.
    """
    source = question.source
    facts = list(_describe_variance(source.tensors))
    if source.arguments is not None:
        facts += _describe_flags(source.arguments, str(source.arguments_name), question.typed)
    return facts


def _describe_variance(tensors: Mapping[str, Any]) -> Iterator[Fact]:
    """A learned variance doubles the output's channels."""
    first, last = (find_tensor(tensors, f"{n}.weight") for n in ("input_blocks.0.0", "out.2"))
    if first is None or last is None or min(len(first.shape), len(last.shape)) < 2:
        return
    learned = last.shape[0] == 2 * first.shape[1]
    origin = "shape of out.2.weight"
    yield Fact("diffusion.variance", "learned_range" if learned else "fixed", origin)
    yield Fact("diffusion.objective", "hybrid" if learned else "simple", ASSUMED)


def _describe_flags(
    flags: Mapping[str, Any], name: str, typed: Mapping[str, Any]
) -> Iterator[Fact]:
    for flag, what in (
        ("image_size", "data.image_size"),
        ("diffusion_steps", "diffusion.num_timesteps"),
    ):
        if (number := flags.get(flag)) is not None:
            require(
                type(number) is int and number >= 1,
                flag,
                number,
                f"a number of 1 or more in {name}",
            )
            yield Fact(what, number, name)
    if (schedule := flags.get("noise_schedule")) is not None:
        schedule = check_choice("noise_schedule", schedule, SCHEDULES)
        yield Fact("diffusion.schedule", SCHEDULES[schedule], name)
    for flag, what, values in (
        ("predict_xstart", "diffusion.prediction_type", ("eps", "x_0")),
        ("rescale_timesteps", "diffusion.rescale_timesteps", (False, True)),
        ("sigma_small", "sample.variance", ("fixed_large", "fixed_small")),
        ("learn_sigma", "diffusion.variance", ("fixed", "learned_range")),
        ("clip_denoised", "sample.clip_x_0", (False, True)),
        ("use_ddim", "sample.sampler", ("ddpm", "ddim")),
    ):
        if (chosen := flags.get(flag)) is not None:
            require(chosen in (True, False), flag, chosen, f"true or false in {name}")
            yield Fact(what, values[bool(chosen)], name)
    if flags.get("use_kl") is True:
        yield Fact("diffusion.objective", "vlb", name)
    if not typed.keys() & set(GRID):
        respacing = flags.get("timestep_respacing", "")
        expected = f'text such as "250" or "" in {name}'
        require(isinstance(respacing, str), "timestep_respacing", respacing, expected)
        origin = name if "timestep_respacing" in flags else ASSUMED
        yield Fact("sample.respacing", respacing or None, origin)
