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
# # denoising_diffusion_pytorch, line for line
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-ddpm/jax_ddpm/blob/main/docs/tutorial/lucidrains.ipynb)
#
# *Implementation of Denoising Diffusion Probabilistic Model using PyTorch* shows how to use P. Wang's package
# `denoising_diffusion_pytorch`: a network, a loss, samples, and a `Trainer` for a folder of pictures. This
# notebook does the same with the library, whose network has the package's parameters under other names.
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
from PIL import Image, ImageDraw

import jax_ddpm as jd

# The text: dim 64, mults (1, 2, 4, 8), 128 pixels, 700,000 steps.
DIM, MULTS, SIZE, STEPS = 8, (1, 2, 4), 32, 300


def show(pictures, titles=(), *, columns=8, title=""):
    """Draw images in [-1, 1], a row after the other."""
    pixels = np.asarray(jd.to_uint8(jnp.asarray(pictures)))
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    size = (1.3 * columns, 1.3 * rows + 0.5 * bool(title or titles))
    figure, cells = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for i, cell in enumerate(cells.flat):
        cell.axis("off")
        if i < len(pixels):
            cell.imshow(pixels[i], cmap="gray", vmin=0, vmax=255)
            cell.set_title(titles[i] if i < len(titles) else "", fontsize=9)
    figure.suptitle(title)
    plt.show()


# %% [markdown]
# ## Usage
#
# The text:
#
# ```python
# model = Unet(dim=64, dim_mults=(1, 2, 4, 8))
# diffusion = GaussianDiffusion(model, image_size=128, timesteps=1000)
# training_images = torch.rand(8, 3, 128, 128)  # images are normalized from 0 to 1
# loss = diffusion(training_images)
# loss.backward()
# ```
#
# Here the network is a pure function, so its parameters stand apart. The channels come last, and images
# are in [-1, 1], so `2 * images - 1` does what the package does inside. The package's defaults are spelled
# out: the sigmoid schedule, and v prediction, weighted like the error of the noise.

# %%
network = jd.make_network(jd.LucidrainsConfig(dim=DIM, dim_mults=MULTS), (SIZE, SIZE, 3))
params = network.init(jax.random.key(0))
schedule = jd.named_schedule("sigmoid_cumprod", 1000, clipped_log_variance="floor")
diffusion = jd.Diffusion(schedule, prediction_type="v", weighting="snr", variance="fixed_small")

training_images = jax.random.uniform(jax.random.key(1), (8, SIZE, SIZE, 3))


@jax.jit
def loss_and_gradient(params, images, key):
    def loss(params):
        return diffusion.loss(network.apply_fn, params, 2 * images - 1, key).mean()

    return jax.value_and_grad(loss)(params)


loss, gradient = loss_and_gradient(params, training_images, jax.random.key(2))
print(f"loss {loss:.3f}, and a gradient for {len(jax.tree.leaves(gradient))} arrays")

# %% [markdown]
# `sampled_images = diffusion.sample(batch_size=4)` becomes:

# %%
sampled_images = diffusion.sample(
    network.apply_fn, params, jax.random.key(3), (4, SIZE, SIZE, 3), sampler="ddim", steps=25
)
print(sampled_images.shape)
show(sampled_images, title="A network without training")

# %% [markdown]
# ## What the text says, and what is so
#
# - *"Over time, the variance of the Gaussian noise decreases."* It grows: see the right panel.
# - *"training_images contains eight noisy images."* They are clean images (here, random pixels); the loss
#   adds the noise.
# - *"Unet has a 64-level depth."* 64 is the width; the depth is the number of `dim_mults`.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for name in ("linear", "cosine", "sigmoid_cumprod"):
    each = jd.named_schedule(name, 1000)
    axes[0].plot(each.sqrt_alphas_cumprod, label=name)
    axes[1].plot(each.sqrt_one_minus_alphas_cumprod**2)
axes[0].set(title=r"picture that is left, $\sqrt{\bar\alpha_t}$", xlabel="t")
axes[1].set(title=r"variance of the noise, $1-\bar\alpha_t$", xlabel="t")
axes[0].legend()
plt.show()

# %% [markdown]
# ## A folder of pictures
#
# The text trains on `'path/to/your/images'`. So that this notebook runs without a download, we paint a
# folder: a coloured ball under a sky.


# %%
def paint(rng, side=48):
    sky, ball = rng.integers(120, 256, 3), rng.integers(0, 256, 3)
    picture = Image.new("RGB", (side, side), tuple(sky.tolist()))
    brush = ImageDraw.Draw(picture)
    ground = int(rng.integers(side // 2, side - 8))
    brush.rectangle((0, ground, side, side), fill=(60, 110 + int(rng.integers(60)), 50))
    radius, x = int(rng.integers(7, 15)), int(rng.integers(10, side - 10))
    box = (x - radius, ground - 2 * radius + 4, x + radius, ground + 4)
    brush.ellipse(box, fill=tuple(ball.tolist()))
    return picture


folder, rng = Path("pictures"), np.random.default_rng(0)
folder.mkdir(exist_ok=True)
for i in range(512):
    paint(rng).save(folder / f"{i:03}.png")

source = jd.open_source("folder", folder, image_size=SIZE)
images = np.stack([source.images[i] for i in range(len(source.images))])
print(images.shape, images.dtype)
show(jd.from_uint8(jnp.asarray(images[:16])), title="The folder")

# %% [markdown]
# ## The Trainer
#
# The text:
#
# ```python
# trainer = Trainer(diffusion, 'path/to/your/images', train_batch_size=32, train_lr=8e-5,
#                   train_num_steps=700000, gradient_accumulate_every=2, ema_decay=0.995,
#                   amp=True, calculate_fid=True)
# trainer.train()
# ```
#
# `jd.fit` takes the images and the settings. It makes a run folder with checkpoints, a log and samples;
# the same call again resumes it. With so few steps we need a larger learning rate and no accumulation.

# %%
run = jd.fit(
    images,
    config="denoising-diffusion-pytorch",
    network=jd.LucidrainsConfig(dim=DIM, dim_mults=MULTS),
    steps=STEPS,
    batch_size=16,
    accumulate=1,
    learning_rate=2e-3,
    ema_decay=0.98,
    ema_every=1,
    random_flip=True,
    log_every=10,
    sample_every=STEPS,
    sample_images=16,
    checkpoint_every=STEPS,
    keep_every=None,
    evaluate_every=None,
    run="ball-run",
)
print(run)

# %% [markdown]
# On the command line, the text's call is `jax-ddpm train --preset denoising-diffusion-pytorch-128 --data.path
# path/to/your/images`: 128 pixels, mixed precision, and a distance every 1,000 steps.

# %%
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.plot([row.step for row in run.history], [row.loss for row in run.history])
plt.yscale("log")
plt.xlabel("training step")
plt.ylabel("loss")
plt.show()

# %% [markdown]
# `sampling_timesteps=250` is DDIM in 250 steps. Far fewer do as well.

# %%
for steps in (10, 50):
    pictures = run.sample(8, sampler="ddim", steps=steps, batch_size=8)
    show(jd.from_uint8(jnp.asarray(pictures)), title=f"DDIM in {steps} steps")

# %% [markdown]
# ## How good is it?
#
# `calculate_fid=True` measures the Frechet distance in the features of an Inception network. Here it is
# `--train.evaluate-every 1000` while training, and `jax-ddpm evaluate RUN --features inception` afterwards;
# the weights of that network are a download. Without them, a distance of the pixels tells a trained network
# from an untrained one.

# %%
from jax_ddpm.process.distances import energy_distance

drawn = np.concatenate([run.sample(8, steps=10, seed=s, batch_size=8) for s in range(8)])
data, other = images[:256].reshape(256, -1), images[256:].reshape(256, -1)
noise = rng.integers(0, 256, data.shape)
for name, each in {"other data": other, "samples": drawn.reshape(64, -1), "noise": noise}.items():
    print(f"{name:11} {energy_distance(data / 255, each / 255):7.3f}")

# %% [markdown]
# ## Exercises
#
# **1. `gradient_accumulate_every`.** The gradient of a batch is the mean of the gradients of its parts, so
# two parts of 4 images train like one batch of 8, with half of the memory.

# %%
x_0 = jd.from_uint8(jnp.asarray(images[:8]))
t, noise = jd.draw(jax.random.split(jax.random.key(4), 8), x_0.shape[1:], 1000)
loss_fn = jd.make_loss_fn(network.apply_fn, schedule, prediction_type="v", weighting="snr")
gradient_of = jax.jit(jax.grad(lambda p, *batch: loss_fn(p, *batch).mean()))
whole = gradient_of(params, x_0, t, noise)
halves = [gradient_of(params, x_0[i : i + 4], t[i : i + 4], noise[i : i + 4]) for i in (0, 4)]
mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
worst = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), whole, mean)
largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
print(f"largest difference {max(jax.tree.leaves(worst)):.1e} of gradients up to {largest:.1e}")
assert max(jax.tree.leaves(worst)) < 1e-3 * largest

# %% [markdown]
# **2. Back to PyTorch.** `convert --to torch` writes a file under the package's names, which
# `Unet.load_state_dict` takes; `jd.from_torch` reads such a file. Both ways, the network computes the same.

# %%
from safetensors.numpy import load_file

command = [sys.executable, "-m", "jax_ddpm", "convert", "ball-run", "--to", "torch"]
subprocess.run(command, check=True)
state_dict = load_file("ball-run/lucidrains.safetensors")
print(", ".join(sorted(state_dict)[:3]), "...")
back = jd.from_torch(state_dict, "lucidrains", {"dim": DIM, "dim_mults": MULTS})
np.testing.assert_allclose(
    back.apply(back.params, x_0, t), run.apply_fn(run.params, x_0, t), atol=1e-4
)
