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
# # From noise to pictures: DDPM, formula by formula
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-ddpm/jax_ddpm/blob/main/docs/tutorial/ddpm.ipynb)
#
# A denoising diffusion model learns to undo noise. To train it, we add noise to pictures and ask a
# network which noise it was. To draw a new picture, we start from pure noise and remove a little of
# it at a time.
#
# This notebook goes through *Denoising Diffusion Probabilistic Models*
# ([Ho et al. 2020](https://arxiv.org/abs/2006.11239)). Each formula stands beside the function that
# computes it. It runs in about four minutes on two CPU cores, without a GPU and without a download.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jax_ddpm") is None:  # on Colab
    source = "git+https://github.com/jax-ddpm/jax_ddpm"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_ddpm as jd

STEPS = 600  # training steps of the U-Net; 3000 give much better pictures


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
# ## 1. The data
#
# 10,000 pictures of Fashion-MNIST come with the package: 28 x 28 pixels, grey, in ten classes. We
# take three classes, so that a few minutes of training suffice.

# %%
source = jd.open_source("embedded")
wanted = [source.class_names.index(name) for name in ("Trouser", "Sneaker", "Bag")]
chosen = np.isin(source.labels, wanted)
source = jd.ImageSource(source.images[chosen], source.labels[chosen])
print(len(source.images), "pictures of", source.images.shape[1:], source.images.dtype)

# %% [markdown]
# A network should see numbers around zero. `from_uint8` scales 0..255 to [-1, 1] (section 3.3 of the
# paper); `to_uint8` goes back.

# %%
batch = next(jd.batches(source, 16, seed=0))
x_0 = jd.from_uint8(jnp.asarray(batch.pixels))
print(f"a batch has shape {x_0.shape} and goes from {x_0.min():.0f} to {x_0.max():.0f}")
show(x_0, title="A batch of the data")

# %% [markdown]
# ## 2. The forward process: adding noise
#
# One step makes a picture slightly noisier (**Eq. 2**):
#
# $$q(x_t \mid x_{t-1}) = \mathcal{N}\big(\sqrt{1-\beta_t}\,x_{t-1},\ \beta_t I\big)
# \qquad\text{so}\qquad x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\epsilon$$
#
# `jd.q_step` computes it. The betas are a table, the *schedule*. Ho et al. let them grow linearly from
# 0.0001 to 0.02 in T = 1000 steps. Here t counts from 0 to T - 1: the paper's $\beta_1$ is
# `schedule.betas[0]`.

# %%
T = 1000
schedule = jd.make_schedule(jd.linear_betas(T, start=1e-4, end=0.02))


@partial(jax.jit, static_argnames="num_steps")
def walk(x, key, num_steps):
    """Take steps of Eq. 2. Return where they lead, and the first picture after each step."""

    def step(x, t):
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape)
        x = jd.q_step(schedule, x, jnp.full(len(x), t), noise)
        return x, x[0]

    return jax.lax.scan(step, x, jnp.arange(num_steps))


picture = x_0[:1]
_, path = walk(picture, jax.random.key(0), T)
shown = [0, 24, 49, 99, 199, 399, 999]
titles = ["original", *(f"t = {t}" for t in shown)]
show(jnp.concatenate([picture, path[jnp.array(shown)]]), titles, title="One picture, step by step")

# %% [markdown]
# A thousand steps for one noisy picture would be slow. But a sum of Gaussians is a Gaussian, so one
# jump does the same (**Eq. 4**), with $\alpha_t = 1 - \beta_t$ and
# $\bar\alpha_t = \prod_{s \le t} \alpha_s$:
#
# $$q(x_t \mid x_0) = \mathcal{N}\big(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t) I\big)
# \qquad x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$$
#
# `jd.q_sample` computes it; the two factors are tables of the schedule. Do steps and jump agree? The
# mean and the spread over all pixels of 100 walks say so.

# %%
t, copies = 99, jnp.repeat(picture, 100, axis=0)
walks, _ = walk(copies, jax.random.key(1), t + 1)
jumps = jd.q_sample(
    schedule, copies, jnp.full(100, t), jax.random.normal(jax.random.key(2), copies.shape)
)
for name, samples in {"100 steps": walks, "one jump": jumps}.items():
    rest = samples - schedule.sqrt_alphas_cumprod[t] * picture
    print(f"{name:10} mean {rest.mean():+.4f}, deviation {rest.std():.4f}")
print(f"Eq. 4      mean +0.0000, deviation {schedule.sqrt_one_minus_alphas_cumprod[t]:.4f}")
assert abs(walks.std() - jumps.std()) < 0.01

# %% [markdown]
# ## 3. Schedules
#
# A schedule decides how much of the picture is left at each t. Four of them, by name:

# %%
NAMES = ("linear", "quadratic", "sigmoid", "cosine")
schedules = {name: jd.named_schedule(name, T) for name in NAMES}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for name, each in schedules.items():
    log_snr = jnp.log(each.alphas_cumprod / (1 - each.alphas_cumprod))
    for cell, values in zip(axes, (each.betas, each.sqrt_alphas_cumprod, log_snr), strict=True):
        cell.plot(values, label=name)
axes[0].set(title=r"noise added in a step, $\beta_t$", ylim=(0, 0.05), xlabel="t")
axes[1].set(title=r"picture that is left, $\sqrt{\bar\alpha_t}$", xlabel="t")
axes[2].set(title="log signal-to-noise ratio", xlabel="t")
axes[0].legend()
plt.show()

# %% [markdown]
# **Why is the cosine schedule better?** Look at the same picture under both
# ([Nichol & Dhariwal 2021](https://arxiv.org/abs/2102.09672), figure 3). The linear schedule has
# destroyed it long before the end; the last steps teach the network little. The cosine schedule loses
# the picture at an even pace.

# %%
at = jnp.arange(1, 9) * T // 8 - 1
noise = jax.random.normal(jax.random.key(3), (8, *picture.shape[1:]))
rows = [
    jd.q_sample(schedules[name], jnp.repeat(picture, 8, 0), at, noise)
    for name in ("linear", "cosine")
]
titles = [f"t = {t}" for t in at]
show(jnp.concatenate(rows), titles, title="Above: linear. Below: cosine.")
for name, each in schedules.items():
    lost = 100 * (each.alphas_cumprod < 0.01).mean()
    print(f"{name:10} {lost:3.0f} % of the steps have less than 1 % of the picture's power left")

# %% [markdown]
# ## 4. The way back
#
# If we knew the clean picture, the step back would be a Gaussian too (**Eqs. 6 and 7**):
#
# $$q(x_{t-1} \mid x_t, x_0) = \mathcal{N}(\tilde\mu_t, \tilde\beta_t I), \quad
# \tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\beta_t}{1-\bar\alpha_t} x_0
# + \frac{\sqrt{\alpha_t}(1-\bar\alpha_{t-1})}{1-\bar\alpha_t} x_t, \quad
# \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\beta_t$$
#
# `jd.q_posterior` computes it. It must agree with Bayes' rule, which we can check in one line: a step
# forward from $x_{t-1}$ and the jump to $x_{t-1}$, multiplied, are the posterior and the jump to $x_t$.

# %%
t = jnp.array([300])
noise = jax.random.normal(jax.random.key(4), picture.shape)
x_t = jd.q_sample(schedule, picture, t, noise)
back = jd.q_posterior(schedule, picture, x_t, t)
beta, alpha_bar = schedule.betas[300], schedule.alphas_cumprod[299]
precision = (1 - beta) / beta + 1 / (1 - alpha_bar)  # of the product of two Gaussians
mean = (
    jnp.sqrt(1 - beta) / beta * x_t + jnp.sqrt(alpha_bar) / (1 - alpha_bar) * picture
) / precision
print("largest difference of the means", jnp.abs(mean - back.mean).max())
np.testing.assert_allclose(mean, back.mean, atol=1e-4)
np.testing.assert_allclose(1 / precision, back.variance.item(), rtol=1e-4)

# %% [markdown]
# We do not know the clean picture. A network guesses. Ho et al. let it predict the noise,
# $\epsilon_\theta(x_t, t)$, from which the guess of $x_0$ follows (**Eq. 15**, `jd.x_0_from_eps`):
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\,\epsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}$$
#
# ## 5. The network
#
# A U-Net: down to 7 x 7 pixels, and up again, with connections between equal resolutions. The
# timestep enters every block: `temb` makes 64 numbers of it. Here is a small one, part by part;
# `depth=2` also lists what each part consists of.

# %%
config = jd.UNetConfig(
    channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, attn_levels=(2,), dropout=0, num_groups=8
)
network = jd.make_network(config, (28, 28, 1))
params = network.init(jax.random.key(0))
print(jd.summarize(config, (28, 28, 1)))

# %% [markdown]
# Picture in, noise out, in the same shape. The network is a pure function of its parameters.

# %%
eps = network.apply_fn(params, x_0, jnp.full(16, 300))
print(x_0.shape, "->", eps.shape)

# %% [markdown]
# ## 6. The loss
#
# **Algorithm 1** and **Eq. 14**: draw a timestep and noise, make the noisy picture, and compare.
#
# $$L_\text{simple} = \mathbb{E}\,\big\|\epsilon - \epsilon_\theta(\sqrt{\bar\alpha_t}\,x_0 +
# \sqrt{1-\bar\alpha_t}\,\epsilon,\ t)\big\|^2$$
#
# In the library, the random numbers go in as arguments (`jd.draw`), and `jd.diffusion_loss` does the rest.

# %%
t, noise = jd.draw(jax.random.split(jax.random.key(5), 16), (28, 28, 1), T)
x_t = jd.q_sample(schedule, x_0, t, noise)
by_hand = ((noise - network.apply_fn(params, x_t, t)) ** 2).mean(axis=(1, 2, 3))
loss = jd.diffusion_loss(network.apply_fn, params, schedule, x_0, t, noise)
np.testing.assert_allclose(by_hand, loss, rtol=1e-5)
print(f"loss before training: {loss.mean():.2f}. A network that answers 0 has 1.")

# %% [markdown]
# ## 7. Sampling
#
# **Algorithm 2** starts from noise $x_T$ and repeats its line 4, here in its own form:
#
# $$x_{t-1} = \frac{1}{\sqrt{\alpha_t}}\Big(x_t -
# \frac{1-\alpha_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon_\theta(x_t, t)\Big) + \sigma_t z$$
#
# with $z = 0$ in the last step, and $\sigma_t^2 = \beta_t$ or $\tilde\beta_t$.


# %%
def line_4(x_t, t, eps, z):
    """Line 4 of algorithm 2, with sigma_t^2 = beta_t."""
    beta = schedule.betas[t]
    root = schedule.sqrt_one_minus_alphas_cumprod[t]  # of 1 - alpha bar
    return (x_t - beta / root * eps) / jnp.sqrt(1 - beta) + jnp.sqrt(beta) * z


# %% [markdown]
# The library writes the same step through $\hat x_0$: Eq. 15 put into Eq. 7 gives **Eq. 11**, the mean
# in line 4. Its samplers then work with networks that predict anything. Both agree:

# %%
z = jax.random.normal(jax.random.key(6), x_0.shape)
denoise_fn = jd.make_denoise_fn(network.apply_fn, params, clip_x_0=False)
levels = jd.level_at(schedule, jnp.array([300, 299]))
ours, _ = jd.run_chain(jd.ddpm("fixed_large"), denoise_fn, levels, x_0, lambda i: z)
np.testing.assert_allclose(line_4(x_0, 300, eps, z), ours, atol=1e-3)
print("largest difference", jnp.abs(line_4(x_0, 300, eps, z) - ours).max())

# %% [markdown]
# `clip_x_0=False` is the paper's formula. Ho et al.'s code clips $\hat x_0$ to [-1, 1], and so does the
# library unless told otherwise: a guess outside of the range of pixels is certainly wrong.
#
# Before training, the samples are noise.

# %%
diffusion = jd.Diffusion(schedule)


def draw_pictures(params, num=8, steps=50, sampler="ddim"):
    return diffusion.sample(
        network.apply_fn, params, jax.random.key(7), (num, 28, 28, 1), sampler=sampler, steps=steps
    )


show(draw_pictures(params), title="Samples before training")

# %% [markdown]
# ## 8. Training
#
# One step of algorithm 1: the loss, its gradient, and an optimiser. `jd.make_train_step` puts them
# together with the random draws and a moving average of the parameters, which gives better samples.


# %%
def train(network, num_steps, look_at=()):
    """Train for `num_steps`; return the averaged parameters and the losses."""
    rate = jd.make_learning_rate(5e-3, warmup_steps=50, decay="cosine", num_steps=num_steps)
    optimizer = jd.make_optimizer(rate, optimizer="muon")
    update = jd.make_update(
        jd.make_loss_fn(network.apply_fn, schedule), optimizer, ema=jd.make_ema(decay=0.98)
    )
    step = jax.jit(jd.make_train_step(update, T), donate_argnums=0)
    state, losses = jd.create_state(network.init(jax.random.key(0)), optimizer), []
    for batch, i in zip(jd.batches(source, 16, seed=0), range(num_steps), strict=False):
        state, metrics = step(state, batch.pixels, jax.random.key(1))
        losses.append(metrics["loss"])
        if i in look_at:
            show(draw_pictures(state.ema_params), title=f"After {i} steps")
    return state.ema_params, np.asarray(losses)


params, losses = train(network, STEPS, look_at=(STEPS // 6, STEPS // 2))

# %%
window = max(1, STEPS // 20)
smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
plt.figure(figsize=(7, 3), layout="constrained")
plt.plot(losses, color="0.8", label="each step")
plt.plot(np.arange(window - 1, len(losses)), smooth, label=f"mean of {window} steps")
plt.yscale("log")
plt.xlabel("training step")
plt.ylabel("loss")
plt.legend()
plt.show()

# %% [markdown]
# The loss of a single step says little, because it depends on the t that was drawn: little noise is hard
# to tell from the picture, much noise is easy to see.

# %%
probes = (0, 10, 50, 100, 200, 400, 600, 800, 999)
noise = jax.random.normal(jax.random.key(8), x_0.shape)
by_t = [
    jd.diffusion_loss(network.apply_fn, params, schedule, x_0, jnp.full(16, t), noise).mean()
    for t in probes
]
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.plot(probes, by_t, "o-")
plt.yscale("log")
plt.xlabel("t")
plt.ylabel("loss at t")
plt.show()

# %% [markdown]
# ## 9. From noise to pictures
#
# All 1,000 steps of algorithm 2. `trace` keeps what we want to look at along the way: the noisy picture
# and the $\hat x_0$ that the network has in mind.


# %%
@jax.jit
def run_backwards(params, key):
    denoise_fn = jd.make_denoise_fn(network.apply_fn, params)
    levels = jd.level_at(schedule, jnp.asarray(jd.timestep_grid(T, T)))
    x_T, noise_fn = jd.draw_noise(jax.random.split(key, 16), (28, 28, 1))
    return jd.sample(
        jd.ddpm(), denoise_fn, levels, x_T, noise_fn,
        trace=lambda state, guess: (state.x_t, guess.x_0), num_frames=41,
    )  # fmt: skip


pictures, (noisy, guesses) = run_backwards(params, jax.random.key(9))
show(pictures, title="New pictures")

# %% [markdown]
# Above: $x_t$, from noise to a picture. Below: $\hat x_0$ at the same time. First the guess is an
# average of everything; then a shape, then details.

# %%
frames = np.array([0, 8, 16, 24, 30, 35, 38, 40])
titles = [f"t = {T - 1 - min(25 * int(i), T - 1)}" for i in frames]
show(np.concatenate([noisy[frames, 0], guesses[frames, 0]]), titles)

# %% [markdown]
# The same as a film.

# %%
grids = [jd.make_image_grid(frame, columns=4) for frame in np.asarray(jd.to_uint8(noisy))]
jd.save_gif(Path("sampling.gif"), grids)

# %% [markdown]
# In Jupyter, `IPython.display.Image("sampling.gif")` shows it.
#
# Most of the thousand steps can be left out: DDIM (Song et al. 2021) follows the mean without noise.

# %%
for steps in (10, 25):
    show(draw_pictures(params, steps=steps), title=f"DDIM in {steps} steps")

# %% [markdown]
# ## 10. How likely are real pictures?
#
# The loss comes from a bound on the likelihood (**Eqs. 3 and 5**): a sum of a term per timestep, each
# the divergence of two Gaussians, plus the prior at $x_T$ and the pixels at $t = 0$ (**Eq. 13**).
# `Diffusion.likelihood` computes all of them, in bits per pixel.

# %%
bound = diffusion.likelihood(network.apply_fn, params, x_0[:4], jax.random.key(10))
terms = np.asarray(bound.terms).mean(axis=1)
print(f"{bound.total.mean():.2f} bits per pixel, of which the prior has {bound.prior.mean():.5f}")
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.loglog(np.arange(1, T + 1), terms)
plt.xlabel("t + 1")
plt.ylabel("bits per pixel")
plt.show()

# %% [markdown]
# The smallest t hold most of the bits: details that hardly anybody sees. $L_\text{simple}$ leaves out the
# weights of Eq. 12 and so cares less about them. That is why it gives better pictures and a worse bound.
#
# ## 11. Where each formula is
#
# | Ho et al. | what | function |
# |---|---|---|
# | Eq. 2 | a step forward | `jd.q_step` |
# | Eq. 4 | the jump to t | `jd.q_sample`, `jd.q_mean_variance` |
# | Eqs. 3, 5 | the bound and its terms | `jd.variational_bound`, `jd.vb_term`, `jd.prior_term` |
# | Eqs. 6, 7 | the step back, x_0 known | `jd.q_posterior` |
# | Eq. 1, section 3.2 | the step back, x_0 predicted | `jd.p_mean_variance` |
# | Eqs. 8 to 10, 12 | the bound as a weighted error of the noise | `jd.make_loss_fn(..., objective="vlb")` |
# | Eq. 11, algorithm 2 | sampling | `jd.ddpm`, `jd.sample` |
# | Eq. 13 | the likelihood of 8-bit pixels | `jd.vb_term` at t = 0 |
# | Eq. 14, algorithm 1 | the loss, training | `jd.diffusion_loss`, `jd.make_train_step` |
# | Eq. 15 | x_0 from eps | `jd.x_0_from_eps` |
#
# The notebook [Change one thing at a time](experiments.ipynb) goes on from here: it compares schedules,
# T, losses and predictions. The page [equations](../equations.md) lists the other papers and the tests of each formula.
#
# ## Exercises
#
# **1. Draw with $\sigma_t^2 = \tilde\beta_t$ instead of $\beta_t$.** `variance="fixed_small"`. With 1,000
# steps both give similar pictures, as the paper says; with few steps, $\beta_t$ leaves noise behind.

# %%
small = jd.Diffusion(schedule, variance="fixed_small")
for name, each in {"beta": diffusion, "beta tilde": small}.items():
    drawn = each.sample(
        network.apply_fn, params, jax.random.key(11), (8, 28, 28, 1), sampler="ddpm", steps=50
    )
    show(drawn, title=f"algorithm 2 in 50 steps, variance {name}")

# %% [markdown]
# **2. Turn one picture into another.** Noise a real picture halfway, and let the network finish it
# (`jd.renoise` and the command `jax-ddpm sample --image` do this).

# %%
start, key = 400, jax.random.key(12)


@jax.jit
def finish(params, x_t, keys):
    denoise_fn = jd.make_denoise_fn(network.apply_fn, params)
    levels = jd.level_at(schedule, jnp.append(jnp.arange(start, -1, -20), -1))
    _, noise_fn = jd.draw_noise(keys, (28, 28, 1))
    return jd.sample(jd.ddim(), denoise_fn, levels, x_t, noise_fn)[0]


x_t = jd.q_sample(schedule, x_0[:8], jnp.full(8, start), jax.random.normal(key, x_0[:8].shape))
finished = finish(params, x_t, jax.random.split(key, 8))
show(jnp.concatenate([x_0[:8], x_t, finished]), title="original, noised to t = 400, finished")

# %% [markdown]
# **3. Train on your own pictures.** `jd.open_source("folder", "path/to/pictures", image_size=32)` gives
# a source for `train`; `jd.fit(images)` does everything in one call, with checkpoints and a run folder.
# On the command line: `jax-ddpm train --data.name folder --data.path DIR`.
