# ruff: noqa: I001 - grouped by subject
"""The public names of the package: the one list, which `__init__.py` reads at run time."""

# The layer to start with; everything below is pure functions.
from jax_ddpm.api.diffusion import (
    Diffusion as Diffusion,
)
from jax_ddpm.api.fit import (
    fit as fit,
)
from jax_ddpm.api.trained_run import (
    TrainedRun as TrainedRun,
    load_run as load_run,
)

# Schedules and noise levels.
from jax_ddpm.process.schedules import (
    BETAS as BETAS,
    Schedule as Schedule,
    cosine_betas as cosine_betas,
    linear_betas as linear_betas,
    make_schedule as make_schedule,
    named_schedule as named_schedule,
    quadratic_betas as quadratic_betas,
    rescale_zero_terminal_snr as rescale_zero_terminal_snr,
    sigmoid_betas as sigmoid_betas,
    sigmoid_cumprod_betas as sigmoid_cumprod_betas,
)
from jax_ddpm.process.levels import (
    Level as Level,
    level_at as level_at,
    level_list as level_list,
    level_of_sigma as level_of_sigma,
    level_of_t as level_of_t,
)
from jax_ddpm.process.grids import (
    continuous_levels as continuous_levels,
    parse_timesteps as parse_timesteps,
    respace_betas as respace_betas,
    space_timesteps as space_timesteps,
    timestep_grid as timestep_grid,
)

# The forward process, and what a network predicts.
from jax_ddpm.process.types import (
    DenoiseFn as DenoiseFn,
    Gaussian as Gaussian,
    Prediction as Prediction,
)
from jax_ddpm.process.diffusion import (
    p_mean_variance as p_mean_variance,
    q_mean_variance as q_mean_variance,
    q_posterior as q_posterior,
    q_sample as q_sample,
    q_step as q_step,
    x_0_from_x_prev as x_0_from_x_prev,
)
from jax_ddpm.process.predictions import (
    eps_from_v as eps_from_v,
    eps_from_x_0 as eps_from_x_0,
    prediction_target as prediction_target,
    to_prediction as to_prediction,
    v_from as v_from,
    x_0_from_eps as x_0_from_eps,
    x_0_from_v as x_0_from_v,
)
from jax_ddpm.process.denoiser import (
    make_denoise_fn as make_denoise_fn,
    rescale_timesteps as rescale_timesteps,
    respace_denoiser as respace_denoiser,
)

# Losses, and which timesteps are trained.
from jax_ddpm.process.losses import (
    diffusion_loss as diffusion_loss,
    make_loss_fn as make_loss_fn,
)
from jax_ddpm.process.weighting import (
    loss_weight as loss_weight,
)
from jax_ddpm.process.drawing import (
    draw as draw,
)
from jax_ddpm.process.timesteps import (
    make_timestep_fn as make_timestep_fn,
)

# Samplers, the loop that runs them, guidance and editing.
from jax_ddpm.samplers import (
    SAMPLERS as SAMPLERS,
    Sampler as Sampler,
    SamplerState as SamplerState,
    ddim as ddim,
    ddim_inverse as ddim_inverse,
    ddpm as ddpm,
    deis as deis,
    dpmpp_2m as dpmpp_2m,
    dpmpp_2m_inverse as dpmpp_2m_inverse,
    dpmpp_2m_sde as dpmpp_2m_sde,
    dpmpp_2s as dpmpp_2s,
    dpmpp_3m as dpmpp_3m,
    dpmpp_sde as dpmpp_sde,
    draw_noise as draw_noise,
    euler as euler,
    euler_ancestral as euler_ancestral,
    heun as heun,
    ipndm as ipndm,
    kdpm2 as kdpm2,
    kdpm2_ancestral as kdpm2_ancestral,
    lms as lms,
    plms as plms,
    pndm as pndm,
    run_chain as run_chain,
    sa_solver as sa_solver,
    sample as sample,
    unipc as unipc,
)
from jax_ddpm.process.guidance import (
    classifier_gradient as classifier_gradient,
    guide_network as guide_network,
    guide_score as guide_score,
)
from jax_ddpm.samplers.editing import (
    find_latents as find_latents,
    find_start as find_start,
    inpaint as inpaint,
    mix_noisy as mix_noisy,
    renoise as renoise,
    repaint as repaint,
    repaint_grid as repaint_grid,
    slerp as slerp,
)

# Likelihoods.
from jax_ddpm.process.likelihood import (
    Bound as Bound,
    make_noise_fn as make_noise_fn,
    normal_kl as normal_kl,
    prior_term as prior_term,
    make_reverse_fn as make_reverse_fn,
    variational_bound as variational_bound,
    vb_term as vb_term,
)
from jax_ddpm.process.probability_flow import (
    bits_per_dimension as bits_per_dimension,
    dequantize as dequantize,
    draw_probes as draw_probes,
    flow_log_density as flow_log_density,
)

# Networks, and weights from PyTorch.
from jax_ddpm.models import (
    AnnotatedConfig as AnnotatedConfig,
    AnnotatedWSConfig as AnnotatedWSConfig,
    CustomConfig as CustomConfig,
    GuidedDiffusionConfig as GuidedDiffusionConfig,
    ImprovedDiffusionConfig as ImprovedDiffusionConfig,
    LucidrainsConfig as LucidrainsConfig,
    LucidrainsV0Config as LucidrainsV0Config,
    LucidrainsV1Config as LucidrainsV1Config,
    NetworkFns as NetworkFns,
    PulferConfig as PulferConfig,
    UNet as UNet,
    UNet2DConfig as UNet2DConfig,
    UNetConfig as UNetConfig,
    make_network as make_network,
    summarize as summarize,
)
from jax_ddpm.interop import (
    from_torch as from_torch,
    to_torch as to_torch,
)

# Optimisers, moving averages and the train step.
from jax_ddpm.optim.optimizers import (
    make_learning_rate as make_learning_rate,
    make_optimizer as make_optimizer,
)
from jax_ddpm.optim.averages import (
    make_ema as make_ema,
    make_posthoc_ema as make_posthoc_ema,
)
from jax_ddpm.training.state import (
    TrainState as TrainState,
    create_state as create_state,
)
from jax_ddpm.training.step import (
    make_train_step as make_train_step,
)
from jax_ddpm.training.update import (
    make_update as make_update,
)

# Programs compiled once and kept for the next session.
from jax_ddpm.devices.compile_cache import (
    enable_compilation_cache as enable_compilation_cache,
)

# Images and batches.
from jax_ddpm.data.sources import (
    ImageSource as ImageSource,
    open_source as open_source,
)
from jax_ddpm.data.loader import (
    batches as batches,
)
from jax_ddpm.files.images import (
    from_uint8 as from_uint8,
    make_image_grid as make_image_grid,
    save_gif as save_gif,
    save_png as save_png,
    to_uint8 as to_uint8,
)

# Settings of a run, and the error that a user's mistake raises.
from jax_ddpm.config import (
    PRESETS as PRESETS,
    Config as Config,
    DataConfig as DataConfig,
    DiffusionConfig as DiffusionConfig,
    SampleConfig as SampleConfig,
    TrainConfig as TrainConfig,
    find_preset as find_preset,
)
from jax_ddpm.errors import (
    UserError as UserError,
)

__version__: str
