"""The description of another implementation: its names, layouts and constructor arguments."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jax_ddpm.interop.facts import Fact, Question, describe_betas_tensor
from jax_ddpm.models import Architecture
from jax_ddpm.models.architecture import ImageShape

Shapes = Mapping[str, tuple[int, ...]]  # name of a tensor -> shape
WeightLayout = Literal["pointwise_2d", "pointwise_1d", "channels"]


def keep(config: Architecture, image_shape: ImageShape) -> Architecture:
    """Return `config`."""
    return config


@dataclass(frozen=True)
class Peer:
    """An implementation whose weights can be read and written.

    `names` translates a dotted name from left to right. The first rule whose left side matches the
    start of what is left replaces the match by its right side; a part without a rule stays. `{i}`,
    with any letter, is a number; `{-i}` is a stage counted from the other end. The same table, read
    backwards, translates our names into theirs.

    Their kernels are (out, in, h, w), matrices (out, in), and norms over an image (c, h, w).
    `layouts` maps endings of names to other layouts: pointwise_2d (out, in, 1, 1) and pointwise_1d
    (out, in, 1) are matrices here; channels (1, c, 1, 1) are vectors.
    """

    make_config: Callable[..., Architecture]
    """Makes our configuration from the arguments of its constructor."""
    arguments: tuple[str, ...]
    """The names of its constructor's arguments."""
    infer: Callable[[Shapes], dict[str, Any]]
    """Infers arguments from the names and shapes of its tensors."""
    names: list[tuple[str, str]]
    preset: str
    """The preset for runs with its weights."""
    architecture: type[Architecture]
    """The class of the configurations that `make_config` makes."""
    layouts: dict[str, WeightLayout] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    """Tensors in its files that do not belong to the network, which are skipped."""
    prefix: str = ""
    """The prefix of every name in its own files."""
    wrapper: str = ""
    """The prefix of the network in the files that its own scripts load, which wrap the network."""
    torch_layout: bool = True
    """Whether it uses PyTorch's layouts; False: ours."""
    read_flags: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """Translates the flags of its own command to the arguments of its constructor."""
    unknowable: tuple[str, ...] = ()
    """Arguments that change results but no shape; without them, the weights are refused."""
    describe: Callable[[Question], list[Fact]] = describe_betas_tensor
    """Describes a run with its weights, apart from the network."""
    express: Callable[[Architecture, ImageShape], Architecture] = keep
    """Expresses a network in its architecture, if that has the same network."""
    write_arguments: Callable[[Architecture, ImageShape], dict[str, Any]] | None = None
    """Writes the arguments of its constructor; None: our settings of the same names."""

    release: Callable[[Architecture], "Peer"] | None = None
    """Chooses the release that has a network, if its releases name their tensors differently."""
    settable: tuple[str, ...] = ()
    """Arguments that change results but no shape, and that have a usual value."""

    def of(self, config: Architecture) -> "Peer":
        """The release that has the network `config`."""
        return self if self.release is None else self.release(config)

    def list_arguments(self, config: Architecture, image_shape: ImageShape) -> dict[str, Any]:
        """The arguments of its constructor for the network `config`, None included."""
        if self.write_arguments is not None:
            return self.write_arguments(config, image_shape)
        ours = asdict(config)
        return {name: ours[name] for name in self.arguments if name in ours}
