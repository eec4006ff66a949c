"""Explain why JAX cannot compute on the platform that the user has chosen."""

import os

import jax

from jax_ddpm.errors import one_line


def describe_platform_problem() -> str | None:
    """Explain why JAX has no device to compute on; None if it has one."""
    try:
        jax.devices()
    except Exception as error:  # JAX raises several kinds, and some have no message
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = one_line(str(error)).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        reason = reason or "none was found"
        if not chosen:
            return f"JAX has no device to compute on: {reason}"
        return (
            f"JAX_PLATFORMS is {chosen!r}, but JAX has no such device here ({reason}): unset it, "
            "or set it to cpu; for a GPU, install jax[cuda12]"
        )
    return None
