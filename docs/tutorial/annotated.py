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
# # The Annotated Diffusion Model, cell for cell
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-ddpm/jax_ddpm/blob/main/docs/tutorial/annotated.ipynb)
#
# The blog post *The Annotated Diffusion Model* (N. Rogge and K. Rasul, 2022) implements a DDPM step by step
# in PyTorch. This notebook goes through the same steps with the library: schedules, noise on a photo, the
# loss, the network with ConvNeXt blocks, training on Fashion-MNIST, samples, and a GIF. It also shows two
# slips of the post, and mends them.
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
from matplotlib import cbook
from PIL import Image

import jax_ddpm as jd

# The post: all classes, dim 28, batch 128, 5 epochs of 469 steps.
CLASSES, DIM, BATCH, STEPS = ("T-shirt/top", "Trouser", "Bag"), 8, 16, 200


def show(pictures, titles=(), *, columns=8, side=1.3, title=""):
    """Draw images in [-1, 1], a row after the other."""
    pixels = np.asarray(jd.to_uint8(jnp.asarray(pictures)))
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    size = (side * columns, side * rows + 0.5 * bool(title or titles))
    figure, cells = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for i, cell in enumerate(cells.flat):
        cell.axis("off")
        if i < len(pixels):
            cell.imshow(pixels[i], cmap="gray", vmin=0, vmax=255)
            cell.set_title(titles[i] if i < len(titles) else "", fontsize=9)
    figure.suptitle(title)
    plt.show()


# %% [markdown]
# ## The forward process
#
# The post defines four schedules. They are functions of the library; `jd.make_schedule` derives every
# table that the post computes by hand.

# %%
timesteps = 200
SCHEDULES = {
    "cosine": jd.cosine_betas(timesteps, clip=(1e-4, 0.9999)),
    "linear": jd.linear_betas(timesteps, start=1e-4, end=0.02),
    "quadratic": jd.quadratic_betas(timesteps, start=1e-4, end=0.02),
    "sigmoid": jd.sigmoid_betas(timesteps, start=1e-4, end=0.02),
}
schedule = jd.make_schedule(SCHEDULES["linear"])
alphas_cumprod = np.cumprod(1 - SCHEDULES["linear"])
sqrt_recip_alphas = np.sqrt(1 / (1 - SCHEDULES["linear"]))
np.testing.assert_allclose(schedule.alphas_cumprod, alphas_cumprod, rtol=1e-6)

# %% [markdown]
# The post noises a photo of cats. Put your own `cat.jpg` beside the notebook; otherwise we take the
# portrait of Grace Hopper that comes with matplotlib. The transform: a square of 128 pixels in
# [-1, 1]. In JAX the channels come last.

# %%
file = Path("cat.jpg") if Path("cat.jpg").exists() else cbook.get_sample_data("grace_hopper.jpg")
photo = Image.open(file).convert("RGB")
side = min(photo.size)
left, top = (photo.width - side) // 2, (photo.height - side) // 4
photo = photo.crop((left, top, left + side, top + side)).resize((128, 128))
x_start = jd.from_uint8(jnp.asarray(np.array(photo)))[None]
print(x_start.shape)

# %% [markdown]
# The reverse transform gives the photo back, bit for bit.

# %%
np.testing.assert_array_equal(jd.to_uint8(x_start)[0], np.array(photo))

# %% [markdown]
# `q_sample` is the "nice property" (Ho et al., Eq. 4). The post shows t = 0, 50, 100, 150 and 199.

# %%
t = jnp.array([0, 50, 100, 150, 199])
noise = jax.random.normal(jax.random.key(0), (5, 128, 128, 3))
noisy = jd.q_sample(schedule, jnp.repeat(x_start, 5, 0), t, noise)
show(jnp.concatenate([x_start, noisy]), ["photo", *(f"t = {i}" for i in t)], side=2)

# %% [markdown]
# **The first slip.** You can still see who it is at t = 199. With T = 200 and the betas that Ho et al. chose
# for T = 1000, a good part of the picture is left in $x_T$, yet sampling starts from pure noise. Betas that
# are five times as large mend it, and so does the cosine schedule.

# %%
MENDED = {
    "as in the post": schedule,
    "rescaled": jd.make_schedule(jd.linear_betas(timesteps, rescale=True)),
    "cosine": jd.make_schedule(SCHEDULES["cosine"]),
}
ends = [jd.q_sample(each, x_start, jnp.array([199]), noise[:1]) for each in MENDED.values()]
left = [float(each.sqrt_alphas_cumprod[-1]) for each in MENDED.values()]
titles = [f"{name}\n{100 * share:.1f} % left" for name, share in zip(MENDED, left, strict=True)]
show(jnp.concatenate(ends), titles, side=2.2, title="t = 199\n")

# %% [markdown]
# **The second slip.** The post's first version squares the ends of the quadratic schedule where it should
# take their roots. Hardly any noise is added. The library keeps it as `quadratic_slip`, to load what was
# trained with it.

# %%
slip = jd.named_schedule("quadratic_slip", timesteps)
print(f"left at the end: {float(slip.sqrt_alphas_cumprod[-1]):.6f}")

# %% [markdown]
# ## The network
#
# The post's U-Net has ConvNeXt blocks, linear attention where pictures are large, and full attention in
# the middle. `AnnotatedConfig` is the same network: it loads the post's weights (`jd.from_torch`).

# %%
network = jd.make_network(jd.AnnotatedConfig(dim=DIM), (28, 28, 1))
params = network.init(jax.random.key(0))
for name, part in params.items():
    print(
        f"{name:10} {sum(leaf.size for leaf in jax.tree.leaves(part)):9,} numbers: {', '.join(part)}"
    )

# %% [markdown]
# **Why linear attention?** Full attention compares each pixel with each other one. Linear attention
# multiplies keys and values first, so that its cost grows with the number of pixels, not with its square.

# %%
from jax_ddpm.models.annotated import linear_attention
from jax_ddpm.models.layers import attention

for side in (7, 14, 28):
    qkv = [jax.random.normal(jax.random.key(i), (1, side * side, 32)) for i in range(3)]
    cost = [
        jax.jit(f).lower(*qkv).compile().cost_analysis()["flops"]
        for f in (attention, linear_attention)
    ]
    print(f"{side:2} x {side:2} pixels: full {cost[0]:12,.0f}, linear {cost[1]:10,.0f} operations")

# %% [markdown]
# ## The loss
#
# `p_losses` with the Huber loss (`F.smooth_l1_loss`), by hand and by the library.

# %%
source = jd.open_source("embedded")
chosen = np.isin(source.labels, [source.class_names.index(name) for name in CLASSES])
source = jd.ImageSource(source.images[chosen], source.labels[chosen])
x_0 = jd.from_uint8(jnp.asarray(next(jd.batches(source, 16, seed=0)).pixels))

t, noise = jd.draw(jax.random.split(jax.random.key(1), 16), (28, 28, 1), timesteps)
x_noisy = jd.q_sample(schedule, x_0, t, noise)
difference = network.apply_fn(params, x_noisy, t) - noise
size = jnp.abs(difference)
by_hand = jnp.where(size < 1, difference**2 / 2, size - 0.5).mean(axis=(1, 2, 3))
loss = jd.diffusion_loss(network.apply_fn, params, schedule, x_0, t, noise, loss_type="huber")
np.testing.assert_allclose(by_hand, loss, rtol=1e-4)
print(f"Huber loss before training: {loss.mean():.3f}")

# %% [markdown]
# ## Sampling
#
# `p_sample` is line 4 of algorithm 2, with the posterior variance. Here it stands in its own form, and is
# compared with the library's sampler.


# %%
def p_sample(model_output, x, t, z):
    betas_t, root = schedule.betas[t], schedule.sqrt_one_minus_alphas_cumprod[t]
    model_mean = sqrt_recip_alphas[t] * (x - betas_t * model_output / root)
    return model_mean + jnp.sqrt(schedule.posterior_variance[t]) * z


output = network.apply_fn(params, x_0, jnp.full(16, 100))
denoise_fn = jd.make_denoise_fn(network.apply_fn, params, clip_x_0=False)
levels = jd.level_at(schedule, jnp.array([100, 99]))
theirs, _ = jd.run_chain(jd.ddpm("fixed_small"), denoise_fn, levels, x_0, lambda i: noise)
np.testing.assert_allclose(p_sample(output, x_0, 100, noise), theirs, atol=1e-3)

# %% [markdown]
# ## Train the model
#
# Adam at 1e-3 and mirrored pictures, as in the post. We train with the rescaled schedule.


# %%
def train(network, schedule):
    """Train for STEPS steps; return the parameters and the losses."""
    optimizer = jd.make_optimizer(1e-3, max_grad_norm=None)
    loss_fn = jd.make_loss_fn(network.apply_fn, schedule, loss_type="huber")
    update = jd.make_update(loss_fn, optimizer)
    step = jax.jit(jd.make_train_step(update, timesteps, random_flip=True), donate_argnums=0)
    state, losses = jd.create_state(network.init(jax.random.key(0)), optimizer), []
    for batch, i in zip(jd.batches(source, BATCH, seed=0), range(STEPS), strict=False):
        state, metrics = step(state, batch.pixels, jax.random.key(1))
        losses.append(float(metrics["loss"]))
        if i % 50 == 0:
            print("Loss:", losses[-1])
    return state.params, losses


schedule = MENDED["rescaled"]
params, losses = train(network, schedule)

# %% [markdown]
# ## Sampling (inference)


# %%
@jax.jit
def draw_pictures(params, schedule):
    """Draw 16 pictures; also return what the chain looks like at 40 of its steps."""
    denoise_fn = jd.make_denoise_fn(network.apply_fn, params)
    levels = jd.level_at(schedule, jnp.asarray(jd.timestep_grid(timesteps, timesteps)))
    keys = jax.random.split(jax.random.key(2), 16)
    x_T, noise_fn = jd.draw_noise(keys, (28, 28, 1))
    return jd.sample(
        jd.ddpm("fixed_small"), denoise_fn, levels, x_T, noise_fn,
        trace=lambda state, guess: state.x_t, num_frames=40,
    )  # fmt: skip


pictures, frames = draw_pictures(params, schedule)
show(pictures, title=f"After {STEPS} steps")

# %% [markdown]
# The post shows a T-shirt; more steps make better ones (`jax-ddpm train --preset annotated-convnext`). The
# GIF of the denoising process:

# %%
grids = [jd.make_image_grid(frame, columns=4) for frame in np.asarray(jd.to_uint8(frames))]
jd.save_gif(Path("diffusion.gif"), grids)
show(frames[jnp.array([0, 10, 20, 25, 30, 34, 37, 39]), 0], title="From noise to a picture")

# %% [markdown]
# ## Exercises
#
# **1. What does the first slip cost?** Train with the post's betas and compare. Their samples start from
# noise that is too strong for the last timestep. Look at brightness and contrast, and at the table.

# %%
params_of_post, _ = train(network, MENDED["as in the post"])
show(draw_pictures(params_of_post, MENDED["as in the post"])[0], title="The betas of the post")

# %%
data = jd.from_uint8(jnp.asarray(source.images[:512]))
with_slip, _ = draw_pictures(params_of_post, MENDED["as in the post"])
for name, images in {"data": data, "rescaled": pictures, "the post's": with_slip}.items():
    print(f"{name:12} mean {images.mean():+.2f}, deviation {images.std():.2f}")

# %% [markdown]
# **2. ResNet blocks instead of ConvNeXt:** `jd.AnnotatedConfig(dim=28, use_convnext=False)`. The
# [EPITA notebook](epita.ipynb) compares the two. The later text of the post has ResNet blocks with
# weight standardisation: `jd.AnnotatedWSConfig()`.
#
# **3. Load the post's weights:** `jax-ddpm convert model.pt --out runs/mine`, or `jd.from_torch`.
