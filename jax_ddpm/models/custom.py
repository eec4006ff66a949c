"""Networks that users bring as two functions: their entry in a configuration, and an adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jax_ddpm.errors import UserError
from jax_ddpm.models.architecture import Architecture
from jax_ddpm.models.network import NetworkFns, find_arguments


@dataclass(frozen=True, kw_only=True)
class CustomConfig(Architecture):
    """A network of your own, given in Python as (init, apply_fn); it is not part of the run."""

    num_classes: int | None = None
    """Number of classes that `label`, [b], can have; None: apply_fn takes no label."""
    self_condition: bool = False
    """Whether apply_fn takes an earlier estimate of x_0 as `x_self_cond`, [b, h, w, c]."""

    def module(self, out_channels: int, dtype: Any) -> Any:
        """Raise UserError: only the caller has the network."""
        raise UserError(
            "this run was trained with a network of your own, which its folder does not hold: "
            "load it in Python and give the network, load_run(folder, network=(init, apply_fn))"
        )

    @property
    def num_labels(self) -> int | None:
        return self.num_classes

    @property
    def self_conditioned(self) -> bool:
        return self.self_condition


def adapt_network(network: tuple[Callable[..., Any], Callable[..., Any]]) -> NetworkFns:
    """Make a user's network, (init, apply_fn), callable with the arguments of the contract.

    `init(key)` returns parameters, `apply_fn(params, x_t, t, ...)` an output like x_t. `train` and
    `dropout_keys` are passed on only if apply_fn takes them, and nothing is passed on as None.
    """
    init, apply_fn = network
    known = find_arguments(apply_fn)
    unknown = set() if known is None else {"train", "dropout_keys"} - set(known)

    def adapted(params: Any, x_t: Any, t: Any, **arguments: Any) -> Any:
        given = {
            name: value
            for name, value in arguments.items()
            if value is not None and name not in unknown
        }
        return apply_fn(params, x_t, t, **given)

    return NetworkFns(jax.jit(init), adapted)
