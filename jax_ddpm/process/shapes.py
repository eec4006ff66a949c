"""Values per image, and the pixels of each image."""

from jaxtyping import Array, Shaped

from jax_ddpm.process.types import Images, Losses


def expand(a: Shaped[Array, "*b"], images: Images) -> Shaped[Array, "..."]:
    """Append axes of length 1 to a value per image, so that it broadcasts over pixels.

    A scalar stays a scalar.
    """
    return a.reshape(a.shape + (1,) * (images.ndim - a.ndim)) if a.ndim else a


def pixel_axes(images: Images) -> tuple[int, ...]:
    """All axes but the first: those of the pixels and channels of each image."""
    return tuple(range(1, images.ndim))


def mean_over_pixels(values: Images) -> Losses:
    """The mean over pixels and channels of each image."""
    return values.mean(axis=pixel_axes(values))


def sum_over_pixels(values: Images) -> Losses:
    """The sum over pixels and channels of each image."""
    return values.sum(axis=pixel_axes(values))
