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
# # Pulfer's DDPM, cell for cell
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-ddpm/jax_ddpm/blob/main/docs/tutorial/pulfer.ipynb)
#
# *Generating images with DDPMs: A PyTorch Implementation* (B. Pulfer, 2022) builds a DDPM for MNIST and
# Fashion-MNIST: a class with the betas, a small U-Net, a training loop that keeps the best weights, and a
# GIF. This notebook goes through the same cells with the library, to the same pictures, and answers what
# the text leaves open: which of its two variances is better, and what its time embedding does.
#
# The theory is in [From noise to pictures](ddpm.ipynb).

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jax_ddpm") is None:  # on Colab
    source = "git+https://github.com/jax-ddpm/jax_ddpm"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)


# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_ddpm as jd

SEED = 0

# %% [markdown]
# ## Definitions
#
# The text trains for 20 epochs of 469 steps. Fewer and smaller ones fit into a few minutes on two cores.

# %%
batch_size = 32  # the text: 128
n_epochs = 6  # the text: 20
steps_per_epoch = 94  # the text: 469, once through 60,000 pictures
lr = 0.001
CLASSES = ("Trouser", "Sneaker", "Bag")  # the text: all ten


def show_images(images, title=""):
    """Show the images as sub-pictures in a square."""
    rows = int(len(images) ** 0.5)
    columns = -(-len(images) // rows)
    figure, cells = plt.subplots(
        rows, columns, figsize=(4, 4.3 * rows / columns), squeeze=False, layout="constrained"
    )
    for cell in cells.flat:
        cell.axis("off")
    for cell, image in zip(cells.flat, np.asarray(images), strict=False):
        cell.imshow(image, cmap="gray")
    figure.suptitle(title)
    plt.show()


# %% [markdown]
# `imshow` without limits stretches each picture from its darkest to its lightest pixel, in the text and
# here. Noisy pictures therefore look as bright as clean ones.
#
# ## The data

# %%
source = jd.open_source("embedded")
chosen = np.isin(source.labels, [source.class_names.index(name) for name in CLASSES])
source = jd.ImageSource(source.images[chosen], source.labels[chosen])
loader = jd.batches(source, batch_size, seed=SEED)
first = jd.from_uint8(jnp.asarray(next(loader).pixels))
show_images(first[:16], "Images in the first batch")

# %% [markdown]
# ## The DDPM
#
# `MyDDPM` holds betas, alphas and alpha bars. Here they are a `Schedule`: tables, computed in float64 and
# stored in float32.

# %%
n_steps, min_beta, max_beta = 1000, 10**-4, 0.02
schedule = jd.make_schedule(jd.linear_betas(n_steps, start=min_beta, end=max_beta))
alphas = 1 - np.linspace(min_beta, max_beta, n_steps)
np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(alphas), rtol=1e-6)

# %% [markdown]
# `MyDDPM.forward` is `jd.q_sample`. Here is `show_forward`: 25, 50, 75 and 100 percent of the way.

# %%
eta = jax.random.normal(jax.random.key(SEED), first.shape)
for percent in (0.25, 0.5, 0.75, 1):
    t = jnp.full(len(first), int(percent * n_steps) - 1)
    noisy = jd.q_sample(schedule, first, t, eta)
    show_images(noisy[:9], f"DDPM noisy images {int(percent * 100)}%")

# %% [markdown]
# ## The U-Net
#
# The time embedding of the text:


# %%
def sinusoidal_embedding(n, d):
    wk = np.array([1 / 10_000 ** (2 * j / d) for j in range(d)])
    t = np.arange(n)[:, None]
    embedding = np.zeros((n, d))
    embedding[:, ::2] = np.sin(t * wk[None, ::2])
    embedding[:, 1::2] = np.cos(t * wk[None, ::2])
    return embedding


config = jd.PulferConfig(n_steps=n_steps, time_emb_dim=100)
network = jd.make_network(config, (28, 28, 1))
params = network.init(jax.random.key(SEED))
table = params["time_embed"]["embedding"]
np.testing.assert_allclose(table, sinusoidal_embedding(n_steps, 100), atol=1e-3)

plt.figure(figsize=(7, 2.6), layout="constrained")
plt.imshow(table.T, aspect="auto", cmap="RdBu")
plt.xlabel("t")
plt.ylabel("entry of the embedding")
plt.show()

# %% [markdown]
# The exponent runs twice as far as in Vaswani et al. 2017: the lower half of the entries hardly changes
# over the thousand timesteps. The network learns all the same, with half of the waves.

# %%
for name, part in params.items():
    print(f"{name:12} {sum(leaf.size for leaf in jax.tree.leaves(part)):8,} numbers")
print(f"in all       {sum(leaf.size for leaf in jax.tree.leaves(params)):8,}, the text's 606,852")

# %% [markdown]
# ## Algorithm 2, and samples without training
#
# The step of `generate_new_images`, line 4 of algorithm 2 in its own form:


# %%
def denoise_step(x, t, eta_theta, z):
    alpha_t, alpha_t_bar = 1 - schedule.betas[t], schedule.alphas_cumprod[t]
    x = (1 / jnp.sqrt(alpha_t)) * (x - (1 - alpha_t) / jnp.sqrt(1 - alpha_t_bar) * eta_theta)
    sigma_t = jnp.sqrt(schedule.betas[t])  # option 1
    return x + sigma_t * z


eta_theta = network.apply_fn(params, first, jnp.full(batch_size, 500))
denoise_fn = jd.make_denoise_fn(network.apply_fn, params, clip_x_0=False)
levels = jd.level_at(schedule, jnp.array([500, 499]))
theirs, _ = jd.run_chain(jd.ddpm("fixed_large"), denoise_fn, levels, first, lambda i: eta)
np.testing.assert_allclose(denoise_step(first, 500, eta_theta, eta), theirs, atol=1e-3)


@jax.jit
def generate_new_images(params):
    """Draw 16 images; also return what the chain looks like at 100 of its steps."""
    denoise_fn = jd.make_denoise_fn(network.apply_fn, params, clip_x_0=False)
    levels = jd.level_at(schedule, jnp.asarray(jd.timestep_grid(n_steps, n_steps)))
    keys = jax.random.split(jax.random.key(SEED + 1), 16)
    x_T, noise_fn = jd.draw_noise(keys, (28, 28, 1))
    return jd.sample(
        jd.ddpm("fixed_large"), denoise_fn, levels, x_T, noise_fn,
        trace=lambda state, _: state.x_t, num_frames=100,
    )  # fmt: skip


show_images(generate_new_images(params)[0], "Images of a network without training")

# %% [markdown]
# ## The training loop
#
# Mean squared error, Adam, a loss per epoch; the best epoch's weights are kept.

# %%
optimizer = jd.make_optimizer(lr, max_grad_norm=None)
update = jd.make_update(jd.make_loss_fn(network.apply_fn, schedule), optimizer)
train_step = jax.jit(jd.make_train_step(update, n_steps))
state, best_loss, best_params = jd.create_state(params, optimizer), float("inf"), params
history = []
for epoch in range(n_epochs):
    losses = []
    for batch, _ in zip(loader, range(steps_per_epoch), strict=False):
        state, metrics = train_step(state, batch.pixels, jax.random.key(SEED))
        losses.append(metrics["loss"])
    history.append(float(np.mean(losses)))
    line = f"Loss at epoch {epoch + 1}: {history[-1]:.3f}"
    if history[-1] < best_loss:
        best_loss, best_params = history[-1], state.params
        line += " --> Best model ever (kept)"
    print(line)

# %%
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.plot(range(1, n_epochs + 1), history, "o-")
plt.yscale("log")
plt.xlabel("epoch")
plt.ylabel("mean loss")
plt.show()

# %% [markdown]
# The loss of an epoch is a mean over random timesteps, so small differences between epochs are chance:
# "best model ever" is a noisy choice. The library's default is a moving average of the weights instead
# (`jd.make_ema`).
#
# ## Testing the model

# %%
generated, frames = generate_new_images(best_params)
show_images(generated, "Final result")

# %% [markdown]
# The GIF stretches each picture to the full range, as the text does, and stays on the last frame.

# %%
from jax_ddpm.files.images import stretch_to_uint8

pixels = np.asarray(stretch_to_uint8(frames))
grids = [jd.make_image_grid(frame, padding=0) for frame in pixels]
jd.save_gif(Path("fashion.gif"), grids)
show_images([grids[i] for i in (0, 50, 75, 99)], "Four frames of fashion.gif")

# %% [markdown]
# ## Exercises
#
# **1. Option 1 or option 2?** The text has $\sigma_t^2 = \tilde\beta_t$ as a comment. In the library it is
# `variance="fixed_small"`. Both noises differ only near t = 0, where the table shows their ratio; with all
# 1,000 steps the pictures hardly differ.

# %%
ratio = schedule.posterior_variance / schedule.betas
print("beta tilde / beta at t = 1, 10, 100, 999:", ratio[jnp.array([1, 10, 100, 999])].round(4))

# %% [markdown]
# With a tenth of the steps, it matters: option 1 leaves noise in the pictures.

# %%
for option, variance in enumerate(("fixed_large", "fixed_small"), start=1):
    diffusion = jd.Diffusion(schedule, variance=variance)
    shape = (9, 28, 28, 1)
    drawn = diffusion.sample(network.apply_fn, best_params, jax.random.key(3), shape, steps=100)
    show_images(drawn, f"100 steps, option {option}")

# %% [markdown]
# **2. Better results.** "More epochs, a better U-Net, and other tricks": `jax-ddpm train --preset pulfer`
# trains as long as the text. `jax-ddpm train` has a better U-Net and the tricks (a moving average, v
# prediction, the cosine schedule, class labels).
#
# **3. MNIST.** Put its four files in a folder: `jd.open_source("idx", "path/to/folder")`.
