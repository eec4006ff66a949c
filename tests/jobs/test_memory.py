"""How much memory a step takes, as the compiled program reports it."""

import pytest

from jax_ddpm.config.run import Config, DiffusionConfig, TrainConfig
from jax_ddpm.jobs.memory import measure_step_memory
from jax_ddpm.models import UNetConfig


@pytest.mark.slow
def test_the_new_state_takes_the_memory_of_the_old_one():
    model = UNetConfig(
        channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2
    )
    diffusion, train = DiffusionConfig(num_timesteps=8), TrainConfig(batch_size=8)
    found = measure_step_memory(Config(model=model, diffusion=diffusion, train=train), (8, 8, 1))
    batch, key = 8 * 8 * 8, 2 * 4  # the labels are not used, so the program does not take them
    assert found.alias == found.arguments - batch - key  # everything else is the state
    assert found.peak == found.arguments + found.temporaries + found.outputs - found.alias
