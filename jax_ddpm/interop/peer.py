"""What is known of one implementation: its names, layouts, and constructor arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jax_ddpm.models import Architecture

Shapes = Mapping[str, tuple[int, ...]]
Layout = Literal["pointwise_2d", "pointwise_1d", "channels"]


@dataclass(frozen=True)
class Peer:
    """An implementation whose weights are read and written.

    `names` translates a dotted name from left to right: the first rule whose left side is what
    comes next gives way to its right side; a part without a rule stays. `{i}` (any letter) is a
    number, `{-i}` the level counted from the other end. Read backwards, by the first rule whose
    right side comes next, the same table translates our names into theirs.

    Kernels are (out, in, h, w) there, matrices (out, in), and a norm over an image (c, h, w);
    `layouts` gives the endings of names that are laid out otherwise: pointwise_2d (out, in, 1, 1)
    and pointwise_1d (out, in, 1) are matrices here, channels (1, c, 1, 1) are vectors.
    """

    make_config: Callable[..., Architecture]
    """Its constructor arguments -> our configuration."""
    arguments: tuple[str, ...]
    """The names of its constructor's arguments."""
    infer: Callable[[Shapes], dict[str, Any]]
    """The arguments that names and shapes of its tensors determine."""
    names: list[tuple[str, str]]
    layouts: dict[str, Layout] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    """Tensors that it saves beside the network's, passed over."""
    prefix: str = ""
    """What its own files put before every name."""
    torch_layout: bool = True
    unknowable: tuple[str, ...] = ()
    """Arguments that change the result but no shape: without a configuration there is no reading
    such weights."""
