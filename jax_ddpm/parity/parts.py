"""The parts of a report on the library, or on one checkpoint's network."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from jax_ddpm.interop import Network
from jax_ddpm.parity.quantities import Pair, Part

SLACK = 10.0


def import_later(module: str, function: str) -> Callable[[str, int], Iterator[Pair]]:
    """Make a function that imports `function` only when called, because it imports PyTorch."""

    def pairs(dtype: str, seed: int) -> Any:
        return getattr(import_module(f"jax_ddpm.parity.{module}"), function)(dtype, seed)

    return pairs


LIBRARY = [
    Part(
        "schedules",
        "Noise schedules",
        "Every table of every schedule at T = 1000. In float32, each is the float64 table, cast "
        "once.",
        "torch_ref",
        import_later("process", "pair_schedules"),
    ),
    Part(
        "process",
        "Forward process",
        "The same images and noise in both, at t = 0, 1, 250, 998 and 999 on the linear schedule.",
        "torch_ref",
        import_later("process", "pair_forward_process"),
    ),
    Part(
        "losses",
        "Training losses",
        "Per example, for every prediction type.",
        "torch_ref",
        import_later("process", "pair_losses"),
    ),
    Part(
        "network",
        "Network",
        "A small U-Net with the same random weights, run once. The report compares the output of "
        "every block, where later blocks also carry the rounding of earlier ones, and the "
        "gradients of the mean squared output with respect to the input and every parameter.",
        "torch_ref",
        import_later("library_network", "pair_library_network"),
    ),
    Part(
        "steps",
        "Sampler steps",
        "One step with the same noise, from each of five levels: to the next level, over a jump, "
        "and to the clean image.",
        "torch_ref",
        import_later("sampling", "pair_steps"),
    ),
    Part(
        "chains",
        "Whole chains",
        "Sampling from the same x_T with the same noise and the same U-Net. Every intermediate "
        "image is compared.",
        "torch_ref",
        import_later("sampling", "pair_chains"),
    ),
    Part(
        "training",
        "Training in lock-step",
        "From the same parameters, with the same batches, timesteps and noise.",
        "torch_ref",
        import_later("training", "pair_training"),
    ),
    Part(
        "quality",
        "Features and measures of images",
        "Inception with random weights from uint8 images, resizing included; the measures of the "
        "same features; files of statistics. Both sides compute measures in float64.",
        "torch-fidelity",
        import_later("quality", "pair_quality"),
        package="torch_fidelity",
    ),
]
if TYPE_CHECKING:
    PartName = str
else:
    PartName = Literal[tuple(part.name for part in LIBRARY)]


def make_network_parts(network: Network) -> list[Part]:
    """Make the only part of a report on a checkpoint."""
    from jax_ddpm.parity.network import pair_network
    from jax_ddpm.parity.peers import find_reference

    reference = find_reference(network)
    text = (
        f"Random images at several t through the checkpoint's network, in {reference.against} and "
        "in JAX. The report compares the output of every block that both have, and all gradients. "
        f"If a network amplifies rounding, the tolerance is {SLACK:g} times PyTorch's own rounding."
    )
    pairs = partial(pair_network, network, reference, "given network")
    return [Part("network", "Network", text, reference.against, pairs, SLACK)]
