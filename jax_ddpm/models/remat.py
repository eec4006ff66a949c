"""Gradient checkpointing: features computed again in the backward pass instead of kept."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from flax.linen.module import InterceptorContext

from jax_ddpm.models.layers import Segment

ApplyFn = Callable[..., Any]
Remat = Literal["none", "nothing_saveable", "dots_saveable", "dots_and_convs_saveable"]


def recomputed(apply_fn: ApplyFn, remat: Remat) -> ApplyFn:
    """`apply_fn` of a Linen module, each `Segment` in it under jax.checkpoint.

    nothing_saveable keeps what goes into a segment and computes the rest again; dots_saveable keeps
    matrix products, dots_and_convs_saveable convolutions as well. The parameters and what is
    computed stay the same. Source: Chen et al. 2016.
    """
    if remat == "none":
        return apply_fn
    policies: dict[str, Callable[..., bool]] = {
        "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
        "dots_saveable": jax.checkpoint_policies.dots_saveable,
        "dots_and_convs_saveable": dots_and_convs_saveable,
    }
    policy = policies[remat]

    def apply(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(checkpoint_segments(policy)):
            return apply_fn(*args, **kwargs)

    return apply


def dots_and_convs_saveable(prim: Any, *_: Any, **__: Any) -> bool:
    """A policy for jax.checkpoint: keep matrix products and convolutions."""
    return prim in (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p)


def checkpoint_segments(policy: Callable[..., bool]) -> Callable[..., Any]:
    """An interceptor of Linen's method calls that runs every segment under jax.checkpoint."""
    inside: set[tuple[str, ...]] = set()  # jax.checkpoint calls the method of the same path again

    def intercept(method: Any, args: Any, kwargs: Any, context: InterceptorContext) -> Any:
        module = context.module
        segment = isinstance(module, Segment) and context.method_name == "__call__"
        if not segment or module.path in inside:
            return method(*args, **kwargs)

        def call(module: nn.Module, *args: Any) -> Any:
            return module(*args, **kwargs)

        inside.add(module.path)
        try:
            return nn.remat(call, policy=policy)(module, *args)
        finally:
            inside.remove(module.path)

    return intercept
