"""How much memory a training step takes, as reported by the compiled program."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_ddpm.config.run import Config
from jax_ddpm.devices.parallel import parallelize
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.train_setup import build_step


class StepMemory(NamedTuple):
    """Bytes on one device; `alias` counts outputs that reuse the memory of arguments."""

    arguments: int
    outputs: int
    alias: int
    temporaries: int

    @property
    def peak(self) -> int:
        """The most memory in use at once, not counting the program itself."""
        return self.arguments + self.outputs - self.alias + self.temporaries


def measure_step_memory(config: Config, image_shape: tuple[int, int, int]) -> StepMemory:
    """Measure the memory that one call of the train step of `config` takes on one device.

    Only compiles: nothing is computed and no array is made. `train.batch_size` is the number of
    images on that device, whatever `train.parallel` is. A data set kept on the device takes memory
    besides. Raises UserError if the network does not take images of `image_shape`.
    """
    config = replace(config, train=replace(config.train, parallel="jit", fsdp=1))
    train, parts = config.train, build(config, image_shape)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(parts.init_state, key)
    calls = () if train.steps_per_call == 1 else (train.steps_per_call,)
    size = (*calls, train.batch_size)
    pixels = jax.ShapeDtypeStruct((*size, *image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct(size, jnp.int32)
    step = parallelize(lambda axis_name: build_step(config, parts, axis_name), "jit")
    found = step.lower(state, (pixels, labels), key).compile().memory_analysis()  # type: ignore[attr-defined]
    return StepMemory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )
