"""`Diffusion`: the loss, sampling and likelihood of one process, with shared settings."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Key

from jax_ddpm.api.by_value import run_compiled
from jax_ddpm.api.checks import (
    check_images,
    check_keywords,
    check_network,
    check_network_args,
    check_shape,
    convert_keys,
    derive_keys,
    takes,
)
from jax_ddpm.api.names import warn_of_low_start
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.errors import UserError, check_choice, require
from jax_ddpm.process.checks import known_values
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import LEARNED, VARIANCES, Variance
from jax_ddpm.process.drawing import draw
from jax_ddpm.process.grids import GridName, choose_levels
from jax_ddpm.process.levels import Level, level_of_sigma, level_of_t
from jax_ddpm.process.likelihood import (
    Bound,
    make_noise_fn,
    make_reverse_fn,
    variational_bound,
)
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.objectives import OBJECTIVES, Objective, check_objective
from jax_ddpm.process.pixel_losses import PIXEL_LOSSES, LossType
from jax_ddpm.process.predictions import PREDICTION_ALIASES, PREDICTION_TYPES, PredictionType
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.types import ApplyFn, DenoiseFn, Images, Losses
from jax_ddpm.process.weighting import WEIGHTINGS, Weighting
from jax_ddpm.samplers import SAMPLERS, Sampler, draw_noise, sample
from jax_ddpm.samplers.registry import Options
from jax_ddpm.training.step import DROPOUT, NOISE, SELF_CONDITION, fold_each


def define_setting(default: Any) -> Any:
    """A keyword-only field that holds no arrays."""
    return struct.field(pytree_node=False, kw_only=True, default=default)


class Diffusion(struct.PyTreeNode):
    """A diffusion process, with the settings for training and sampling a network.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> def apply_fn(params, x_t, t):  # a network is any such function
        ...     return params["scale"] * x_t
        >>> params = {"scale": jax.numpy.ones(3)}
        >>> images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3), minval=-1)
        >>> diffusion = jd.Diffusion(jd.named_schedule("cosine", 1000), prediction_type="v")
        >>> diffusion.loss(apply_fn, params, images, jax.random.key(1)).shape
        (4,)
        >>> diffusion.sample(
        ...     apply_fn, params, jax.random.key(2), (2, 8, 8, 3), sampler="ddim", steps=5
        ... ).shape
        (2, 8, 8, 3)

    The settings are explained in `make_loss_fn` and `make_denoise_fn`. The sampler "ddpm" and the
    likelihood use `variance` too. `self_condition` is for networks that take an earlier x_0 as
    `x_self_cond`. Methods pass other keywords on to the network.

    Raises UserError for settings that do not exist, naming the nearest, or do not go together.
    """

    schedule: Schedule
    prediction_type: PredictionType = define_setting("eps")
    loss_type: LossType = define_setting("l2")
    weighting: Weighting = define_setting("constant")
    min_snr_gamma: float = define_setting(5.0)
    p2_gamma: float = define_setting(1.0)
    p2_k: float = define_setting(1.0)
    objective: Objective = define_setting("simple")
    variance: Variance = define_setting("fixed_large")
    vb_weight: float | None = define_setting(None)
    clip_x_0: bool = define_setting(True)
    rederive_eps: bool = define_setting(True)
    dynamic_threshold: float | None = define_setting(None)
    self_condition: bool = define_setting(False)

    def __new__(cls, *args: Any, **settings: Any) -> "Diffusion":
        check_keywords("Diffusion", settings, ["schedule", *SETTINGS])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.schedule, str | int | np.ndarray | jax.Array):
            raise UserError(
                f"schedule is {type(self.schedule).__name__}, but it must be a Schedule, such as "
                'named_schedule("cosine", 1000) or make_schedule(betas)'
            )
        for name, (choices, aliases) in CHOICES.items():
            chosen = check_choice(name, getattr(self, name), choices, aliases)
            object.__setattr__(self, name, chosen)
        check_objective(self.objective, self.variance)
        if self.prediction_type == "eps" and ends_in_noise(self.schedule):
            raise UserError(
                "prediction_type is 'eps', but it must be 'x_0' or 'v' with zero terminal SNR: "
                "where no signal is left, x_0 does not follow from eps"
            )
        quantile = self.dynamic_threshold
        possible = quantile is None or 0 < quantile <= 1
        require(possible, "dynamic_threshold", quantile, "a quantile, above 0 and at most 1")
        clipped = self.clip_x_0 or quantile is not None
        if not clipped and not self.rederive_eps:
            raise UserError("rederive_eps has no effect where x_0 is not clipped: leave it out")

    def __repr__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.name != "schedule" and getattr(self, f.name) != f.default
        ]
        return f"Diffusion({', '.join([f'T={self.schedule.num_timesteps}', *changed])})"

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of the network's output channels holds the variance."""
        return self.variance in LEARNED

    def loss(
        self, apply_fn: ApplyFn, params: Any, images: Images, key: Any, **network_args: Any
    ) -> Losses:
        """The loss of each image [b], at a timestep and with noise drawn from the image's own key.

        `images` [b, h, w, c] are floats in [-1, 1]. `key` is one key, or one key per image. With
        fold_in(training_key, step), this is the loss of that training step. With `train=True`, a
        network that takes `dropout_keys` gets them too.
        """
        check_images(images, clipped=self.clip_x_0)
        keys = derive_keys(key, len(images))
        check_network(apply_fn, params)
        check_network_args(apply_fn, network_args, SETTINGS)
        if network_args.get("train") and takes(apply_fn, "dropout_keys"):
            network_args.setdefault("dropout_keys", fold_each(keys, DROPOUT))
        if self.self_condition:
            coin_key = jax.random.fold_in(convert_keys(key).reshape(-1)[0], SELF_CONDITION)
            network_args["self_condition"] = jax.random.bernoulli(coin_key)
        shape, num_timesteps = images.shape[1:], self.schedule.num_timesteps
        t, noise = draw(fold_each(keys, NOISE), shape, num_timesteps, images.dtype)
        loss_fn = make_loss_fn(apply_fn, self.schedule, **self._values_of(LOSS))
        return loss_fn(params, images, t, noise, **network_args)

    def sample(
        self,
        apply_fn: ApplyFn,
        params: Any,
        key: Any,
        shape: tuple[int, int, int, int],
        *,
        sampler: str | Sampler = "ddpm",
        steps: int | None = None,
        spacing: GridName | None = None,
        **network_args: Any,
    ) -> Images:
        """Draw images of `shape` [b, h, w, c] in [-1, 1] with `sampler`, a name or a Sampler.

        The default is ancestral sampling over all T timesteps. Other samplers, such as "ddim" and
        "dpmpp_2m", need only 20 to 50 `steps`. The default `spacing` is "karras_trailing", at the
        nearest timesteps, for samplers such as "heun", and "trailing" for others. A spacing that
        starts far below T - 1, where x_T does not belong, gives a warning.
        `key` is one key, or one key per image; image i depends only on its key.

        The whole chain is one program, compiled once for each shape, network, sampler and number of
        steps. Pass the same function for the network each time: a new lambda compiles again.
        """
        check_shape(shape)
        check_network(apply_fn, params)
        check_network_args(apply_fn, network_args, SETTINGS, SAMPLE)
        steps = self.schedule.num_timesteps if steps is None else steps
        own = spacing or find_spacing(sampler) or "trailing"
        levels = choose_levels(self.schedule, steps, own, whole=spacing is None)
        warn_of_low_start(SampleConfig(spacing=own, num_steps=steps), self.schedule.num_timesteps)
        chosen = self._sampler(sampler, levels)
        arrays, others = split_arrays(network_args)

        def program(params: Any, keys: Key[Array, " b"], arrays: dict[str, Any]) -> Images:
            x_T, noise_fn = draw_noise(keys, tuple(shape[1:]), self.schedule.betas.dtype)
            denoise_fn = self.denoise_fn(apply_fn, params, **others, **arrays)
            x_0, _ = sample(
                chosen, denoise_fn, levels, x_T, noise_fn, self_condition=self.self_condition
            )
            return x_0

        return run_compiled(program, params, derive_keys(key, shape[0]), arrays)

    def likelihood(
        self, apply_fn: ApplyFn, params: Any, images: Images, key: Any, **network_args: Any
    ) -> Bound:
        """The variational bound on -log2 p of each image, term by term, in bits per dimension.

        `images` [b, h, w, c] are 8-bit pixels scaled to [-1, 1]. `.total` of the result is the
        bound [b]. It takes T evaluations of the network, in one program that is compiled once for
        each shape and network.
        """
        check_images(images, clipped=True)
        check_network(apply_fn, params)
        check_network_args(apply_fn, network_args, SETTINGS)
        arrays, others = split_arrays(network_args)

        def program(
            params: Any, images: Images, keys: Key[Array, " b"], arrays: dict[str, Any]
        ) -> Bound:
            denoise_fn = self.denoise_fn(apply_fn, params, **others, **arrays)
            if self.self_condition:
                denoise_fn = partial(denoise_fn, x_self_cond=jnp.zeros_like(images))
            reverse_fn = make_reverse_fn(self.schedule, denoise_fn, self.variance)
            noise_fn = make_noise_fn(keys, images.shape[1:], images.dtype)
            return variational_bound(self.schedule, reverse_fn, images, noise_fn)

        return run_compiled(program, params, images, derive_keys(key, len(images)), arrays)

    def bits_per_dimension(
        self, apply_fn: ApplyFn, params: Any, images: Images, key: Any, **network_args: Any
    ) -> Losses:
        """The bound on -log2 p of each image [b], in bits per dimension; see `likelihood`."""
        return self.likelihood(apply_fn, params, images, key, **network_args).total

    def denoise_fn(self, apply_fn: ApplyFn, params: Any, **network_args: Any) -> DenoiseFn:
        """The denoiser (x_t, level) -> Prediction of a network; see `make_denoise_fn`."""
        check_network(apply_fn, params)
        check_network_args(apply_fn, network_args, SETTINGS)
        return make_denoise_fn(
            apply_fn,
            params,
            learned_variance=self.learned_variance,
            **self._values_of(DENOISER),
            **network_args,
        )

    def levels(self, steps: int | None = None, spacing: GridName = "trailing") -> Level:
        """The `steps` + 1 noise levels that a sampler visits; the last is the clean image.

        `steps` is T by default; see `timestep_grid` and `continuous_levels` for the spacings.
        """
        steps = self.schedule.num_timesteps if steps is None else steps
        return choose_levels(self.schedule, steps, spacing)

    def _sampler(self, sampler: Any, levels: Level) -> Sampler:
        if isinstance(sampler, Sampler):
            return sampler
        if callable(sampler):
            raise UserError("sampler is a function: call it, as in ddim(eta=0.0)")
        entry = SAMPLERS[check_choice("sampler", sampler, SAMPLERS)]
        num_steps, of_t, of_sigma = len(levels.t) - 1, level_of_t, level_of_sigma
        options = Options(num_steps, of_t(self.schedule), of_sigma(self.schedule), self.variance)
        return entry.make(options)

    def _values_of(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


CHOICES: dict[str, tuple[Collection[str], Mapping[str, str]]] = {
    "prediction_type": (PREDICTION_TYPES, PREDICTION_ALIASES),
    "loss_type": (PIXEL_LOSSES, {}),
    "weighting": (WEIGHTINGS, {}),
    "objective": (OBJECTIVES, {}),
    "variance": (VARIANCES, {}),
}
SAMPLE = ("sampler", "steps", "spacing")
DENOISER = ("prediction_type", "clip_x_0", "rederive_eps", "dynamic_threshold")
LOSS = (
    "prediction_type",
    "loss_type",
    "weighting",
    "min_snr_gamma",
    "p2_gamma",
    "p2_k",
    "objective",
    "variance",
    "vb_weight",
)
SETTINGS = tuple(f.name for f in fields(Diffusion) if f.name != "schedule")


def ends_in_noise(schedule: Schedule) -> bool:
    """Whether the last timestep is pure noise; False if the tables are traced."""
    signal = known_values(schedule.sqrt_alphas_cumprod) if isinstance(schedule, Schedule) else None
    return signal is not None and signal.ndim == 1 and bool(signal[-1] == 0)


def find_spacing(sampler: Any) -> GridName | None:
    """The spacing that the sampler of this name prefers; None for an object or no preference."""
    return SAMPLERS[sampler].spacing if isinstance(sampler, str) and sampler in SAMPLERS else None


def split_arrays(network_args: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keywords into arrays, which become arguments of the program, and all others."""
    arrays = {
        name: value
        for name, value in network_args.items()
        if all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(value))
    }
    return arrays, {name: value for name, value in network_args.items() if name not in arrays}
