"""Samplers: one short file each, all run by `sample`; the list of them is in registry.py."""

from jax_ddpm.samplers.adams import deis, lms
from jax_ddpm.samplers.base import Sampler, SamplerState, draw_noise, run_chain, sample
from jax_ddpm.samplers.ddim import ddim, ddim_inverse
from jax_ddpm.samplers.ddpm import ddpm
from jax_ddpm.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m
from jax_ddpm.samplers.dpmpp_inverse import dpmpp_2m_inverse
from jax_ddpm.samplers.dpmpp_sde import dpmpp_sde
from jax_ddpm.samplers.euler import euler, euler_ancestral
from jax_ddpm.samplers.heun import heun
from jax_ddpm.samplers.kdpm2 import kdpm2, kdpm2_ancestral
from jax_ddpm.samplers.pndm import ipndm, plms, pndm
from jax_ddpm.samplers.registry import SAMPLERS, SamplerName
from jax_ddpm.samplers.sa_solver import sa_solver
from jax_ddpm.samplers.unipc import unipc

__all__ = [
    "SAMPLERS",
    "Sampler",
    "SamplerName",
    "SamplerState",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_inverse",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde",
    "draw_noise",
    "euler",
    "euler_ancestral",
    "heun",
    "ipndm",
    "kdpm2",
    "kdpm2_ancestral",
    "lms",
    "plms",
    "pndm",
    "run_chain",
    "sa_solver",
    "sample",
    "unipc",
]
