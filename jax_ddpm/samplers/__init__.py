"""Samplers: one short file each, all run by `sample`."""

from jax_ddpm.samplers.base import Sampler, SamplerState, draw_noise, sample
from jax_ddpm.samplers.ddim import ddim
from jax_ddpm.samplers.ddpm import ddpm

__all__ = ["Sampler", "SamplerState", "ddim", "ddpm", "draw_noise", "sample"]
