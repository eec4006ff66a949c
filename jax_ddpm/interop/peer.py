"""What is known of one implementation: its names, layouts, and constructor arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jax_ddpm.models import Architecture

Shapes = Mapping[str, tuple[int, ...]]  # of an implementation's tensors, by name
WeightLayout = Literal["pointwise_2d", "pointwise_1d", "channels"]


@dataclass(frozen=True)
class Peer:
    """An implementation whose weights can be read and written.

    `names` translates a dotted name from left to right. The first rule whose left side matches the
    beginning of the rest replaces it by its right side; a part without a rule stays. `{i}`, with
    any letter, is a number, `{-i}` a stage counted from the other end. Read backwards, the same
    table translates our names into theirs.

    Kernels are (out, in, h, w) there, matrices (out, in), and norms over an image (c, h, w).
    `layouts` gives the endings of names with other layouts: pointwise_2d (out, in, 1, 1) and
    pointwise_1d (out, in, 1) are matrices here, channels (1, c, 1, 1) are vectors.
    """

    make_config: Callable[..., Architecture]
    """From its constructor's arguments to our configuration."""
    arguments: tuple[str, ...]
    """The names of its constructor's arguments."""
    infer: Callable[[Shapes], dict[str, Any]]
    """The arguments that follow from names and shapes of its tensors."""
    names: list[tuple[str, str]]
    preset: str
    """The preset that a run of its weights begins with."""
    layouts: dict[str, WeightLayout] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    """Tensors that it saves beside the network's, which are skipped."""
    prefix: str = ""
    """What its own files put before every name."""
    torch_layout: bool = True
    unknowable: tuple[str, ...] = ()
    """Arguments that change results but no shape: such weights need a configuration."""
