"""Learning-rate schedules and optimisers from Optax, with every default spelled out."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float

from jax_ddpm.errors import check_choice, require

Steps = tuple[optax.GradientTransformation, ...]  # one after the other


def _decay_not(peak: float, num_steps: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _decay_linearly(peak: float, num_steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, num_steps)


def _decay_by_cosine(peak: float, num_steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, num_steps)


DECAYS: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": _decay_not,
    "linear": _decay_linearly,
    "cosine": _decay_by_cosine,
}


def make_learning_rate(
    peak: float, *, warmup_steps: int = 0, decay: str = "constant", num_steps: int = 0
) -> optax.Schedule:
    """peak * min(step / warmup_steps, 1), so 0 at step 0 (Ho et al. 2020), then a decay.

    constant stays at the peak; linear and cosine reach 0 at `num_steps`. Raises UserError for an
    unknown decay.
    """
    decay = check_choice("decay of the learning rate", decay, DECAYS)
    rate = DECAYS[decay](peak, max(num_steps - warmup_steps, 1))
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, peak, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    # Optax counts in int32, and JAX divides int32 in float32 even where float64 is the default.
    return lambda count: rate(jnp.asarray(count, float))


class AdamSettings(NamedTuple):
    """The constants of Adam; only adamw has a weight decay."""

    b1: float
    b2: float
    eps: float
    weight_decay: float


def _adam(learning_rate: optax.ScalarOrSchedule, settings: AdamSettings) -> Steps:
    b1, b2, eps, _ = settings
    return (optax.adam(learning_rate, b1=b1, b2=b2, eps=eps, eps_root=0.0),)


def _adam_tensorflow(learning_rate: optax.ScalarOrSchedule, settings: AdamSettings) -> Steps:
    b1, b2, eps, _ = settings
    return scale_by_tensorflow_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)


def _adamw(learning_rate: optax.ScalarOrSchedule, settings: AdamSettings) -> Steps:
    b1, b2, eps, decay = settings
    return (optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, eps_root=0.0, weight_decay=decay),)


def _muon(learning_rate: optax.ScalarOrSchedule, settings: AdamSettings) -> Steps:
    def read_as_matrix(leaf: Any) -> Any:
        """A kernel is a matrix from all its inputs to its outputs; None: not for Muon."""
        if leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    muon = optax.contrib.muon(
        learning_rate,
        beta=0.95,
        ns_steps=5,
        adam_b1=settings.b1,
        adam_b2=settings.b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(read_as_matrix, params),
    )
    return (muon,)


OPTIMIZERS: dict[str, Callable[[optax.ScalarOrSchedule, AdamSettings], Steps]] = {
    "adam": _adam,
    "adam_tensorflow": _adam_tensorflow,
    "adamw": _adamw,
    "muon": _muon,
}

if TYPE_CHECKING:
    OptimizerName = str
    Decay = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    Decay = Literal[tuple(DECAYS)]


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    optimizer: str = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    clip_eps: float = 0.0,
) -> optax.GradientTransformation:
    """Clipping by global norm, g * min(1, max / (|g| + clip_eps)), then Adam, AdamW or Muon.

    PyTorch's clip_grad_norm_ has clip_eps 1e-6; TensorFlow and the default here have 0.

    adam (Kingma & Ba 2015), adamw (Loshchilov & Hutter 2019): eps is added to the square root of
    the bias-corrected second moment, as in PyTorch. adam_tensorflow adds it before the correction
    ("epsilon hat" of Kingma & Ba 2015, section 2), so it weighs more in the first steps. muon
    (Jordan et al. 2024): the momentum of each kernel is orthogonalised and scaled to a root mean
    square of 0.2 (Liu et al. 2025), so that its learning rates are of Adam's size; biases and norms
    take NAdam's step (Dozat 2016). Raises UserError for an unknown optimiser, and for numbers that
    cannot work, such as a negative learning rate.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> learning_rate = jd.make_learning_rate(2e-4, warmup_steps=500)
        >>> optimizer = jd.make_optimizer(learning_rate, optimizer="adamw")
        >>> params = {"kernel": jax.numpy.ones((3, 3))}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> updates["kernel"].shape
        (3, 3)
    """
    if isinstance(learning_rate, int | float):
        require(learning_rate > 0, "learning_rate", learning_rate, "greater than 0")
    require(all(0 <= beta < 1 for beta in betas), "betas", betas, "in [0, 1)")
    require(eps >= 0, "eps", eps, "at least 0")
    require(weight_decay >= 0, "weight_decay", weight_decay, "at least 0")
    make = OPTIMIZERS[check_choice("optimizer", optimizer, OPTIMIZERS)]
    settings = AdamSettings(*betas, eps, weight_decay)
    # One flat chain: checkpoints hold the states of its parts in this order.
    return optax.chain(clip_by_global_norm(max_grad_norm, clip_eps), *make(learning_rate, settings))


def clip_by_global_norm(max_norm: float | None, eps: float = 0.0) -> optax.GradientTransformation:
    """g * min(1, max_norm / (|g| + eps)), with |g| of the whole tree; None leaves g alone."""
    if max_norm is None:
        return optax.identity()
    if eps == 0:
        return optax.clip_by_global_norm(max_norm)

    def clip(updates: Any, params: Any = None) -> Any:
        factor = jnp.minimum(1, max_norm / (optax.tree.norm(updates) + eps))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return optax.stateless(clip)


class TensorflowAdamState(NamedTuple):
    """The moments, and the running powers of the two decay rates."""

    mu: Any
    nu: Any
    powers: Float[Array, "2"]


def scale_by_tensorflow_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction with eps beside the square root of the uncorrected second moment.

    As in TensorFlow, decay rates, their powers and eps are float32 whatever the parameters are.
    """
    rates = np.array([b1, b2], np.float32)
    b1, b2, eps = float(rates[0]), float(rates[1]), float(np.float32(eps))

    def init(params: Any) -> TensorflowAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return TensorflowAdamState(zeros, jax.tree.map(jnp.copy, zeros), jnp.asarray(rates))

    def update(
        grads: Any, state: TensorflowAdamState, params: Any = None
    ) -> tuple[Any, TensorflowAdamState]:
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, grads)

        def direction(m: Array, v: Array) -> Array:
            power1, power2 = state.powers.astype(m.dtype)
            return jnp.sqrt(1 - power2) / (1 - power1) * m / (jnp.sqrt(v) + eps)

        powers = state.powers * rates
        return jax.tree.map(direction, mu, nu), TensorflowAdamState(mu, nu, powers)

    return optax.GradientTransformation(init, update)
