"""Gradient checkpointing: features are recomputed in the backward pass instead of kept."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax
from flax.linen.module import InterceptorContext

from jax_ddpm.errors import check_choice
from jax_ddpm.models.layers import Segment

ApplyFn = Callable[..., Any]
Policy = Callable[..., bool]


def dots_and_convs_saveable(prim: Any, *_: Any, **__: Any) -> bool:
    """A policy for jax.checkpoint: keep matrix products and convolutions."""
    return prim in (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p)


POLICIES: dict[str, Policy | None] = {
    "none": None,
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_and_convs_saveable": dots_and_convs_saveable,
}
if TYPE_CHECKING:
    Remat = str
else:
    Remat = Literal[tuple(POLICIES)]


def recompute_segments(apply_fn: ApplyFn, remat: Remat) -> ApplyFn:
    """Put each `Segment` of a Linen network under jax.checkpoint (Chen et al. 2016).

    nothing_saveable keeps the inputs of a segment and recomputes the rest; dots_saveable also keeps
    matrix products, dots_and_convs_saveable convolutions as well. Parameters and results stay the
    same.
    """
    policy = POLICIES[check_choice("remat", remat, POLICIES)]
    if policy is None:
        return apply_fn

    def apply(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(checkpoint_segments(policy)):
            return apply_fn(*args, **kwargs)

    return apply


def checkpoint_segments(policy: Policy) -> Callable[..., Any]:
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
