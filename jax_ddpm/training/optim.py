"""Learning-rate schedules and optimisers, from Optax, with every default spelled out."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib


def make_learning_rate(
    peak: float,
    *,
    warmup_steps: int = 0,
    decay: Literal["constant", "linear", "cosine"] = "constant",
    num_steps: int = 0,
) -> optax.Schedule:
    """peak * min(step / warmup_steps, 1), so 0 at step 0 (Ho et al. 2020), then constant or to 0.

    linear and cosine reach 0 at `num_steps`.
    """
    rest = max(num_steps - warmup_steps, 1)
    after: optax.Schedule
    match decay:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, 0.0, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    rate = optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after
    # Optax counts in int32, and JAX divides int32 in float32 even where float64 is the default.
    return lambda count: rate(jnp.asarray(count, float))


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    optimizer: Literal["adam", "adamw", "muon"] = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Clipping by global norm, g * min(1, max / |g|), then Adam, AdamW or Muon.

    adam (Kingma & Ba 2015), adamw (Loshchilov & Hutter 2019): eps is added to the square root of
    the bias-corrected second moment, as in PyTorch. muon (Jordan et al. 2024): the momentum of each
    kernel is orthogonalised and scaled to a root mean square of 0.2 (Liu et al. 2025), so that
    learning rates are of Adam's size; biases and norms take NAdam's step (Dozat 2016).
    """
    b1, b2 = betas
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    adam = {"b1": b1, "b2": b2, "eps": eps, "eps_root": 0.0}
    match optimizer:
        case "adam":
            return optax.chain(clip, optax.adam(learning_rate, **adam))
        case "adamw":
            adamw = optax.adamw(learning_rate, **adam, weight_decay=weight_decay)
            return optax.chain(clip, adamw)
        case "muon":
            return optax.chain(clip, _muon(learning_rate, b1, b2))


def _muon(learning_rate: optax.ScalarOrSchedule, b1: float, b2: float) -> Any:
    def as_matrix(leaf: Any) -> Any:
        """A kernel is a matrix from all its inputs to its outputs; None: not for Muon."""
        if leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return optax.contrib.muon(
        learning_rate,
        beta=0.95,
        ns_steps=5,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(as_matrix, params),
    )
