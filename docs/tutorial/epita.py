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
# # EPITA's practical work 3, with its exercises solved
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-ddpm/jax_ddpm/blob/main/docs/tutorial/epita.ipynb)
#
# The practical *Intro to Denoising Diffusion Probabilistic Models* lets students write the main functions
# of a DDPM in PyTorch: schedules, constants, a step of sampling, the loss, a block of the network and the
# time embedding. This notebook solves each exercise in a few lines of JAX and checks the solution against
# the library. Then it trains, and tries the bonus, ConvNeXt.
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
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_ddpm as jd

# The practical: all classes, dim 28, batch 128, 10 to 50 epochs of 469 steps.
CLASSES, DIM, BATCH, STEPS = ("T-shirt/top", "Trouser", "Bag"), 8, 16, 200


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
# ## Load and process the data set
#
# Fashion-MNIST: grey pictures of 28 x 28 pixels. The practical scales pixels to [-1, 1] and mirrors half
# of the pictures.

# %%
source = jd.open_source("embedded")
chosen = np.isin(source.labels, [source.class_names.index(name) for name in CLASSES])
source = jd.ImageSource(source.images[chosen], source.labels[chosen])
x_0 = jd.from_uint8(jnp.asarray(next(jd.batches(source, 16, seed=0)).pixels))
mirrored = jax.random.bernoulli(jax.random.key(0), shape=(16, 1, 1, 1))
x_0 = jnp.where(mirrored, x_0[:, :, ::-1], x_0)
show(x_0, title="A batch")

# %% [markdown]
# ## Exercise: the linear schedule
#
# > Experiment with all these values and plot them on a graph.


# %%
def linear_beta_schedule(timesteps, beta_start=0.0001, beta_end=0.02):
    return np.linspace(beta_start, beta_end, timesteps)


np.testing.assert_allclose(linear_beta_schedule(600), jd.linear_betas(600))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for T, end in ((600, 0.02), (600, 0.04), (600, 0.005), (200, 0.02)):
    betas = linear_beta_schedule(T, beta_end=end)
    axes[0].plot(betas, label=f"T = {T}, beta_T = {end}")
    axes[1].plot(np.sqrt(np.cumprod(1 - betas)))
axes[0].set(title=r"$\beta_t$", xlabel="t")
axes[1].set(title=r"picture that is left, $\sqrt{\bar\alpha_t}$", xlabel="t")
axes[0].legend()
plt.show()

# %% [markdown]
# The right panel shows what matters: the curve should end near 0, because sampling starts from pure
# noise, and it should not get there early, because the rest of the steps would be wasted. A smaller
# $\beta_T$ or a smaller T alone leaves a part of the picture at the end.
# `jd.named_schedule("linear", 600, beta_end=0.04)` gives such a schedule by name, and
# `jax-ddpm train --preset epita --diffusion.beta-end 0.04` trains with it.
#
# ## Exercise: the cosine schedule
#
# $\bar\alpha_t = f(t) / f(0)$ with $f(t) = \cos^2\big(\frac{t/T + s}{1 + s} \cdot \frac{\pi}{2}\big)$. (The
# page of the practical leaves out the square, which the paper has.)


# %%
def cosine_beta_schedule(timesteps, s=0.008):
    t = np.linspace(0, timesteps, timesteps + 1)
    f = np.cos((t / timesteps + s) / (1 + s) * np.pi / 2) ** 2
    alphas_cumprod = f / f[0]
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return np.clip(betas, 0.0001, 0.9999)


# The library's name for it is "cosine_clipped".
np.testing.assert_allclose(cosine_beta_schedule(600), jd.cosine_betas(600, clip=(1e-4, 0.9999)))

# %% [markdown]
# > Why is the cosine schedule better? Are there any other approaches that could work too?
#
# Under the linear schedule the picture is unrecognisable halfway; the network spends the rest of the
# steps on what is nearly pure noise. The cosine schedule spreads the loss of the picture evenly.
#
# > BONUS: Implement other schedule approaches.


# %%
def quadratic_beta_schedule(timesteps, beta_start=0.0001, beta_end=0.02):
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2


def sigmoid_beta_schedule(timesteps, beta_start=0.0001, beta_end=0.02):
    part = 1 / (1 + np.exp(-np.linspace(-6, 6, timesteps)))
    return beta_start + part * (beta_end - beta_start)


np.testing.assert_allclose(quadratic_beta_schedule(600), jd.quadratic_betas(600))
np.testing.assert_allclose(sigmoid_beta_schedule(600), jd.sigmoid_betas(600))

SCHEDULES = {
    "linear": linear_beta_schedule,
    "cosine": cosine_beta_schedule,
    "quadratic": quadratic_beta_schedule,
    "sigmoid": sigmoid_beta_schedule,
}
noise = jax.random.normal(jax.random.key(1), (8, 28, 28, 1))
at, rows = jnp.arange(8) * 75 + 74, []
for make_betas in SCHEDULES.values():
    schedule = jd.make_schedule(make_betas(600))
    rows.append(jd.q_sample(schedule, jnp.repeat(x_0[:1], 8, 0), at, noise))
titles = [f"t = {t}" for t in at]
show(jnp.concatenate(rows), titles, title=f"From above: {', '.join(SCHEDULES)}")

# %% [markdown]
# ## Exercise: the constants

# %%
timesteps = 600
betas = linear_beta_schedule(timesteps)
alphas = 1 - betas
alphas_cumprod = np.cumprod(alphas)
alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
sqrt_recip_alphas = np.sqrt(1 / alphas)
sqrt_alphas_cumprod = np.sqrt(alphas_cumprod)
sqrt_one_minus_alphas_cumprod = np.sqrt(1 - alphas_cumprod)
posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)

schedule = jd.make_schedule(betas)
for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance"):
    np.testing.assert_allclose(globals()[name], getattr(schedule, name), rtol=1e-6)

# %% [markdown]
# ## Exercise: a step of sampling
#
# Lines 3 and 4 of algorithm 2. In JAX, indexing a table with t gives one number per picture, and a
# reshape lets it multiply pictures: that is the practical's `extract`.


# %%
def extract(table, t):
    return jnp.asarray(table, jnp.float32)[t].reshape(-1, 1, 1, 1)


def p_sample(model, x_t, t, z):
    sqrt_recip_alphas_t = extract(sqrt_recip_alphas, t)
    betas_t = extract(betas, t)
    sqrt_one_minus_alphas_cumprod_t = extract(sqrt_one_minus_alphas_cumprod, t)
    mean_t = sqrt_recip_alphas_t * (x_t - betas_t / sqrt_one_minus_alphas_cumprod_t * model(x_t, t))
    sigma_t = jnp.sqrt(extract(posterior_variance, t))  # 0 at t = 0: the last step adds no noise
    return mean_t + sigma_t * z


# %% [markdown]
# The library's sampler takes the same step, with any network. Here is the practical's.

# %%
config = jd.AnnotatedConfig(dim=DIM, use_convnext=False, resnet_block_groups=1)
network = jd.make_network(config, (28, 28, 1))
params = network.init(jax.random.key(2))
z = jax.random.normal(jax.random.key(3), x_0.shape)
ours = p_sample(lambda x, t: network.apply_fn(params, x, t), x_0, jnp.full(16, 200), z)
denoise_fn = jd.make_denoise_fn(network.apply_fn, params, clip_x_0=False)
levels = jd.level_at(schedule, jnp.array([200, 199]))
theirs, _ = jd.run_chain(jd.ddpm("fixed_small"), denoise_fn, levels, x_0, lambda i: z)
np.testing.assert_allclose(ours, theirs, atol=1e-3)
print("largest difference", jnp.abs(ours - theirs).max())

# %% [markdown]
# ## Exercise: the training loss


# %%
def q_sample(x_0, t, noise):
    return extract(sqrt_alphas_cumprod, t) * x_0 + extract(sqrt_one_minus_alphas_cumprod, t) * noise


def p_losses(model, x_0, t, noise, loss_type="huber"):
    difference = model(q_sample(x_0, t, noise), t) - noise
    size = jnp.abs(difference)
    by_pixel = {
        "l1": size,
        "l2": difference**2,
        "huber": jnp.where(size < 1, difference**2 / 2, size - 0.5),
    }
    return by_pixel[loss_type].mean()


t, noise = jd.draw(jax.random.split(jax.random.key(4), 16), (28, 28, 1), timesteps)
for loss_type in ("l1", "l2", "huber"):
    ours = p_losses(lambda x, t: network.apply_fn(params, x, t), x_0, t, noise, loss_type)
    theirs = jd.diffusion_loss(
        network.apply_fn, params, schedule, x_0, t, noise, loss_type=loss_type
    ).mean()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    print(f"{loss_type:5} before training: {ours:.3f}")

# %% [markdown]
# ## The network
#
# > What are possible use cases of an autoencoder architecture?
#
# Compression, removing noise, finding what is unusual (it is reconstructed badly), and colouring or
# enlarging pictures: whenever output and input are pictures of the same size.
#
# ### Exercise: the ResNet block
#
# Convolution, group normalisation, SiLU. In Flax a module creates its layers where it uses them.


# %%
class Block(nn.Module):
    dim_out: int
    groups: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.dim_out, (3, 3), padding=1)(x)
        x = nn.GroupNorm(self.groups, epsilon=1e-5)(x)
        return nn.silu(x)


features, variables = Block(16).init_with_output(jax.random.key(5), x_0)
print(x_0.shape, "->", features.shape, jax.tree.map(jnp.shape, variables["params"]))

# %% [markdown]
# What group normalisation does, in two lines: each group of channels of each picture gets mean 0 and
# variance 1.

# %%
h = nn.Conv(16, (3, 3), padding=1).apply({"params": variables["params"]["Conv_0"]}, x_0)
grouped = h.reshape(16, 28 * 28, 8, 2)
mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
normal = ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(h.shape)
np.testing.assert_allclose(nn.silu(normal), features, atol=1e-3)

# %% [markdown]
# ### Exercise: sinusoidal position embeddings


# %%
def sinusoidal_embedding(time, dim):
    half_dim = dim // 2
    frequencies = jnp.exp(-jnp.log(10000) / (half_dim - 1) * jnp.arange(half_dim))
    angles = time[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


from jax_ddpm.models.layers import timestep_embedding

table = sinusoidal_embedding(jnp.arange(timesteps), 64)
np.testing.assert_allclose(table, timestep_embedding(jnp.arange(timesteps), 64), atol=1e-3)
plt.figure(figsize=(8, 2.6), layout="constrained")
plt.imshow(table.T, aspect="auto", cmap="RdBu")
plt.xlabel("t")
plt.ylabel("entry of the embedding")
plt.colorbar()
plt.show()

# %% [markdown]
# Above, the sines; below, the cosines. Fast waves tell neighbouring timesteps apart, slow ones tell
# early from late.
#
# ## Exercise: run the training


# %%
def train(network):
    """Train as the practical does: AdamW at 1e-3, Huber loss, mirrored pictures."""
    optimizer = jd.make_optimizer(1e-3, optimizer="adamw", weight_decay=0.01, max_grad_norm=None)
    loss_fn = jd.make_loss_fn(network.apply_fn, schedule, loss_type="huber")
    update = jd.make_update(loss_fn, optimizer)
    step = jax.jit(jd.make_train_step(update, timesteps, random_flip=True), donate_argnums=0)
    state, losses = jd.create_state(network.init(jax.random.key(0)), optimizer), []
    for batch, _ in zip(jd.batches(source, BATCH, seed=0), range(STEPS), strict=False):
        state, metrics = step(state, batch.pixels, jax.random.key(1))
        losses.append(metrics["loss"])
    return state.params, np.asarray(losses)


diffusion = jd.Diffusion(schedule, loss_type="huber", variance="fixed_small", clip_x_0=False)


def draw_pictures(network, params, num=8):
    return diffusion.sample(network.apply_fn, params, jax.random.key(6), (num, 28, 28, 1))


params, losses = train(network)
pictures = draw_pictures(network, params)
show(pictures, title=f"ResNet blocks, {STEPS} steps")

# %% [markdown]
# The practical trains for 10 to 50 epochs and gets "a nice T-shirt"; here you see what a minute gives.
# The same network for longer: `jax-ddpm train --preset epita`.
#
# ## Bonus: ConvNeXt
#
# > Experiment with ConvNeXt by setting `use_convnext=True`. What do you see?

# %%
convnext = jd.make_network(jd.AnnotatedConfig(dim=DIM, use_convnext=True), (28, 28, 1))
convnext_params, convnext_losses = train(convnext)
show(draw_pictures(convnext, convnext_params), title=f"ConvNeXt blocks, {STEPS} steps")

# %%
plt.figure(figsize=(7, 3), layout="constrained")
window = max(1, STEPS // 15)
for name, values in {"ResNet": losses, "ConvNeXt": convnext_losses}.items():
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    plt.plot(np.arange(window - 1, len(values)), smooth, label=name)
plt.yscale("log")
plt.xlabel("training step")
plt.ylabel(f"Huber loss, mean of {window} steps")
plt.legend()
plt.show()
for name, tree in {"ResNet": params, "ConvNeXt": convnext_params}.items():
    print(f"{name:9}{sum(leaf.size for leaf in jax.tree.leaves(tree)):10,} parameters")

# %% [markdown]
# Judge by the curve and the pictures above, and remember that the ConvNeXt network is larger and that a
# step takes longer: compare at equal time, as `jax-ddpm bench presets` does.
#
# ## Bonus: train on your own data set
#
# `jd.open_source("folder", "path/to/pictures", image_size=32)` in place of `source`, and a network for
# `(32, 32, 3)`. CIFAR-10 is `jd.open_source("cifar10", "cifar-10-binary.tar.gz")`. On the command line:
# `jax-ddpm train --preset epita --data.name folder --data.path DIR --data.image-size 32`.
