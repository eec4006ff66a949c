"""What every architecture has: a frozen configuration of plain values that builds its module."""

from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import flax.linen as nn

from jax_ddpm.errors import UserError, check_choice, flag_name, require

ImageShape = tuple[int, int, int]

FLAGS = "--model."  # what the flags of the settings begin with
MAX_BLOCKS = 100  # per resolution: all are built before anything is computed


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The configuration of a network; each architecture adds its own settings.

    An architecture defines `module`. It overrides `check` to refuse settings that cannot work, and
    the properties in which it differs.
    """

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and matrix products; parameters, norms and loss stay float32."""

    def module(self, out_channels: int, dtype: Any) -> nn.Module:
        """The Linen module, which computes in `dtype`.

        `out_channels` is its number of output channels unless the settings give another.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raise UserError for the first setting that cannot work.

        The base class looks at names: each must be one of its field's Literal.
        """
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), list_choices(hint)
            if choices and not (value is None and NoneType in get_args(hint)):
                for item in value if isinstance(value, tuple) else (value,):
                    check_choice(flag_name(name, FLAGS), item, choices)

    def require(self, ok: bool, name: str, expected: str, value: object = None) -> None:
        """Raise UserError, naming the setting as the command line does, unless it is `ok`."""
        require(
            ok, flag_name(name, FLAGS), getattr(self, name) if value is None else value, expected
        )

    def require_positive(self, *names: str) -> None:
        """Raise UserError unless each of these settings is None or at least 1."""
        for name in names:
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "at least 1")

    def check_sides(self, height: int, width: int) -> None:
        """Raise UserError unless the network takes images of this size."""
        if not (self.takes_side(height) and self.takes_side(width)):
            raise UserError(
                f"the images are {height}x{width}, but this network needs sides that are multiples "
                f"of {self.side_multiple}: resize them, or use fewer resolutions"
            )

    def takes_side(self, side: int) -> bool:
        """Whether height or width of the images can be `side`."""
        return side % self.side_multiple == 0

    @property
    def side_multiple(self) -> int:
        """The number that height and width of the images must be multiples of."""
        return 1

    @property
    def image_channels(self) -> int | None:
        """The channels of the images; None: any number."""
        return None

    @property
    def example_shape(self) -> ImageShape:
        """(height, width, channels) of an image that the network takes."""
        side = 4 * self.side_multiple
        return side, side, self.image_channels or 3

    @property
    def num_labels(self) -> int | None:
        """The number of classes of its labels; None: it takes no label."""
        return None

    @property
    def takes_label(self) -> bool:
        """Whether the network needs a label."""
        return self.num_labels is not None

    @property
    def num_timesteps(self) -> int | None:
        """The number of timesteps that the network has a table for; None: any number."""
        return None

    @property
    def self_conditioned(self) -> bool:
        """Whether the network takes an earlier estimate of x_0."""
        return False

    @property
    def dropout_rate(self) -> float:
        """The probability that a feature is dropped in training."""
        return float(getattr(self, "dropout", 0.0))


def list_choices(hint: Any) -> list[str]:
    """The names in the Literals of a type."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [name for part in get_args(hint) for name in list_choices(part)]
