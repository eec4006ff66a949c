# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Change one thing at a time
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-ddpm/jax_ddpm/blob/main/docs/tutorial/experiments.ipynb)
#
# Why is the cosine schedule better? What if $\beta_T$ grows, or T shrinks? Do the loss and what the network
# predicts matter? To compare, we need many trainings. Points in the plane train in seconds: a point is an
# "image" of 1 x 1 pixels with two channels, and everything in [From noise to pictures](ddpm.ipynb) works for
# it. The network is three dense layers in plain JAX.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jax_ddpm") is None:  # on Colab
    source = "git+https://github.com/jax-ddpm/jax_ddpm"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)


# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jax_ddpm as jd
from jax_ddpm.process.distances import energy_distance

T, STEPS = 1000, 3000

# %% [markdown]
# ## The data and the network
#
# The data is a spiral. `init_points` and `make_points_fn` are all that the library asks of a network: a
# function that makes parameters, and a function of parameters, noisy images and timesteps.


# %%
def draw_spiral(key, num):
    angle = 2 + 9 * jnp.sqrt(jax.random.uniform(key, (num,)))
    return (jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) * angle[:, None] / 12)[:, None, None]


def init_points(key, width=96):
    sizes = [2 + 16, width, width, 2]
    keys = jax.random.split(key, 3)
    return [
        (jax.random.normal(k, (m, n)) / jnp.sqrt(m), jnp.zeros(n))
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def make_points_fn(T):
    def apply_points(params, x_t, t):
        angle = (t / T)[:, None] * jnp.pi * 2.0 ** jnp.arange(-1, 7)
        h = jnp.concatenate([3 * x_t[:, 0, 0], jnp.sin(angle), jnp.cos(angle)], -1)
        for i, (weight, bias) in enumerate(params):
            h = (jax.nn.silu(h) if i else h) @ weight + bias
        return h[:, None, None]

    return apply_points


def train_points(schedule, num_steps=STEPS, **settings):
    """Train on the spiral and draw 1,000 points with algorithm 2."""
    T = schedule.num_timesteps
    apply_fn = make_points_fn(T)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    loss_fn = jd.make_loss_fn(apply_fn, schedule, **settings)

    def step(carry, key):
        params, state = carry
        x_0 = draw_spiral(key, 256)
        t, noise = jd.draw(jax.random.split(key, 256), x_0.shape[1:], T)
        grads = jax.grad(lambda p: loss_fn(p, x_0, t, noise).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(key):
        start = init_points(key)
        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(step, (start, optimizer.init(start)), keys)[0][0]

    params = run(jax.random.key(0))
    prediction = settings.get("prediction_type", "eps")
    diffusion = jd.Diffusion(schedule, prediction_type=prediction)
    points = diffusion.sample(apply_fn, params, jax.random.key(1), (1000, 1, 1, 2))
    return np.asarray(points)[:, 0, 0]


# %%
linear, cosine = jd.make_schedule(jd.linear_betas(T)), jd.named_schedule("cosine", T)
RUNS = {
    "Ho et al.: linear, T = 1000": (linear, {}),
    "cosine": (cosine, {}),
    r"$\beta_T$ = 0.1 instead of 0.02": (jd.make_schedule(jd.linear_betas(T, end=0.1)), {}),
    r"$\beta_T$ = 0.002": (jd.make_schedule(jd.linear_betas(T, end=0.002)), {}),
    "T = 100, the same betas": (jd.make_schedule(jd.linear_betas(100)), {}),
    "T = 100, cosine": (jd.named_schedule("cosine", 100), {}),
    "loss: absolute error": (linear, {"loss_type": "l1"}),
    "predict x_0": (linear, {"prediction_type": "x_0"}),
    "predict v": (linear, {"prediction_type": "v"}),
}
drawn = {name: train_points(each, **settings) for name, (each, settings) in RUNS.items()}

# %%
truth = np.asarray(draw_spiral(jax.random.key(2), 1000))[:, 0, 0]
chance = energy_distance(truth, np.asarray(draw_spiral(jax.random.key(3), 1000))[:, 0, 0])
figure, axes = plt.subplots(3, 3, figsize=(10, 10.6), layout="constrained")
for cell, (name, points) in zip(axes.flat, drawn.items(), strict=True):
    cell.scatter(*truth.T, s=3, color="0.85")
    cell.scatter(*points.T, s=3)
    far = 1000 * energy_distance(points, truth)
    left = float(RUNS[name][0].sqrt_alphas_cumprod[-1])
    cell.set_title(f"{name}\ndistance {far:.1f}, left at the end {left:.3f}", fontsize=9)
    cell.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[])
plt.show()
print(f"between two draws of the data itself: {1000 * chance:.1f}")

# %% [markdown]
# Grey: the data. Blue: samples. "Left at the end" is $\sqrt{\bar\alpha_T}$, the share of the picture that
# is still in $x_T$.
#
# - **What if $\beta_T$ grows?** The data are gone early. Most steps work on pure noise, and fewer are left
#   for the details.
# - **What if it shrinks, or T shrinks with the betas unchanged?** Then $x_T$ still holds a part of the
#   picture, but sampling starts from pure noise, which the network has never seen at that t. Tutorials
#   that set T = 200 or 300 with the betas that Ho et al. chose for 1,000 steps have this error;
#   `jd.linear_betas(T, rescale=True)` and the cosine schedule do not.
# - **Does the loss matter, or what the network predicts?** Judge by the distances, and take a difference
#   below the last line for chance. Where no signal is left at the end, eps cannot be predicted from: there
#   v is the safe choice.
#
# ## Exercises
#
# **1. End in pure noise.** `jd.named_schedule("linear", T, zero_terminal_snr=True)` leaves nothing of the
# picture at the end. It needs `prediction_type="v"`: from noise alone, $x_0$ does not follow from eps.

# %%
pure = jd.named_schedule("linear", T, zero_terminal_snr=True)
points = train_points(pure, prediction_type="v")
print(f"left at the end {pure.sqrt_alphas_cumprod[-1]:.3f}, distance", end=" ")
print(f"{1000 * energy_distance(points, truth):.1f}")

# %% [markdown]
# **2. Add a schedule.** Any vector of betas between 0 and 1 is one. This one takes $\bar\alpha_t$ down in a
# straight line, with what `jd.make_schedule` needs computed in two lines.

# %%
alphas_cumprod = np.linspace(1, 0.001, T + 1)
straight = jd.make_schedule(1 - alphas_cumprod[1:] / alphas_cumprod[:-1])
print(f"distance {1000 * energy_distance(train_points(straight), truth):.1f}")
