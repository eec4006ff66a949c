"""What the settings of a run mean, in sentences."""

from collections.abc import Iterator
from dataclasses import fields

from jax_ddpm.config.run import Config, DiffusionConfig
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.data.summary import describe as describe_images
from jax_ddpm.errors import show_name
from jax_ddpm.models import ARCHITECTURES
from jax_ddpm.runs.folder import Run

PREDICTIONS = {"eps": "the noise (eps)", "x_0": "the clean image (x_0)", "v": "v"}
LOSSES = {"l2": "squared error", "l1": "absolute error", "huber": "Huber loss"}


def describe_settings(run: Run, parameters: str = "") -> Iterator[tuple[str, str]]:
    """Describe the run's settings as pairs of a topic and a few sentences.

    `parameters` is the number of the network's parameters, if it is known.
    """
    config = run.config
    yield "Data", _describe_data(run)
    yield "Network", _describe_network(config, parameters)
    yield "Noise", _describe_noise(config.diffusion)
    yield "Objective", _describe_objective(config.diffusion)
    yield "Training", _describe_training(config)
    yield "Averages", _describe_averages(config)
    yield "Sampling", _describe_sampling(config.sample)


def _describe_data(run: Run) -> str:
    data, size = run.config.data, "x".join(map(str, run.image_shape))
    where = show_name(data.name if data.path is None else f"{data.name} {data.path}")
    known = {} if run.images is None else dict(describe_images(run.images.summary))
    sentences = [f"{known.get('images', f'Images of {size}')}, from {where}."]
    if "classes" in known:
        sentences.append(f"Classes: {known['classes']}.")
    flip = "Half of them are mirrored at random." if data.random_flip else "None is mirrored."
    sentences.append(flip)
    if data.holdout:
        sentences.append(f"{data.holdout:.3g} of them are held out for a validation loss.")
    if data.validation is not None:
        sentences.append(f"The validation loss is that of {show_name(data.validation)}.")
    return " ".join(sentences)


def _describe_network(config: Config, parameters: str) -> str:
    model = config.model
    name = {kind: name for name, kind in ARCHITECTURES.items()}[type(model)]
    count = f" with {show_name(parameters)} parameters" if parameters else ""
    usual = type(model)()
    changed = [
        f"{field.name} {show_name(getattr(model, field.name))}"
        for field in fields(model)
        if getattr(model, field.name) != getattr(usual, field.name)
    ]
    settings = f" Its settings: {', '.join(changed)}; all others are the usual ones."
    return f"{name}{count}, in {model.compute_dtype}.{settings if changed else ''}"


def _describe_noise(diffusion: DiffusionConfig) -> str:
    schedule = f"the schedule {diffusion.schedule}"
    if diffusion.betas is not None:
        schedule = "betas of its own"
    end = ", rescaled to end in pure noise" if diffusion.zero_terminal_snr else ""
    return f"T = {diffusion.num_timesteps:,} timesteps with {schedule}{end}."


def _describe_objective(diffusion: DiffusionConfig) -> str:
    loss = LOSSES.get(diffusion.loss_type, diffusion.loss_type)
    weight = "all timesteps count the same"
    if diffusion.weighting != "constant":
        weight = f"timesteps are weighted by {diffusion.weighting}"
    what = PREDICTIONS.get(diffusion.prediction_type, diffusion.prediction_type)
    sentences = [f"The network predicts {what}; {loss}, {weight}."]
    if diffusion.objective != "simple":
        sentences.append(f"The objective is {diffusion.objective}.")
    if diffusion.timestep_sampling != "uniform":
        sentences.append(f"The sampling of timesteps is {diffusion.timestep_sampling}.")
    if diffusion.variance != "fixed":
        sentences.append(f"The variance is learned ({diffusion.variance}).")
    if diffusion.label_dropout:
        sentences.append(f"{diffusion.label_dropout:.3g} of the labels are dropped, for guidance.")
    return " ".join(sentences)


def _describe_training(config: Config) -> str:
    train = config.train
    warmup = f", after {train.warmup_steps:,} steps of warm-up" if train.warmup_steps else ""
    decay = "then constant" if train.decay == "constant" else f"then a {train.decay} decay to 0"
    clip = "Gradients are not clipped."
    if train.max_grad_norm is not None:
        clip = f"Gradients are clipped to norm {train.max_grad_norm:g}."
    start = "" if train.init_from is None else f" It began with {show_name(train.init_from)}."
    rate = f"learning rate {train.learning_rate:g}{warmup}, {decay}"
    return (
        f"{train.num_steps:,} steps of {train.batch_size:,} images with {train.optimizer}; {rate}. "
        f"{clip} Seed {config.seed}.{start}"
    )


def _describe_averages(config: Config) -> str:
    train = config.train
    if train.ema_form == "half_life":
        return f"Parameters are averaged with a half-life of {train.ema_half_life:,} images."
    if not train.ema_decay:
        return "Parameters are not averaged."
    form = "" if train.ema_form == "constant" else f" ({train.ema_form})"
    return f"Parameters are averaged with decay {train.ema_decay:g}{form}."


def _describe_sampling(sample: SampleConfig) -> str:
    steps = f"in {sample.num_steps:,} steps ({sample.spacing})"
    if sample.respacing is not None or sample.timesteps is not None:
        steps = f"at the timesteps {show_name(sample.respacing or sample.timesteps)}"
    clip = "clipped to [-1, 1]" if sample.clip_x_0 else "not clipped"
    guidance = "" if sample.guidance is None else f" Guidance {sample.guidance:g}."
    return f"{sample.sampler} {steps}; predicted images are {clip}.{guidance}"
