"""Train the small classifier whose features ship with the package, on the embedded images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from jax_ddpm.data.sources import ImageSource, open_source
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.jobs.messages import make_bar, tell
from jax_ddpm.quality.classifier import SHAPE, WEIGHTS, Classifier, classify, save_classifier

BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 128, 2e-3, 0.05


def train_features(out: Path = WEIGHTS, epochs: int = 16, seed: int = 0) -> float:
    """Train on the 10,000 embedded training images, write the weights, and return the accuracy.

    The accuracy is that on the 2,000 test images, with the weights as they were written.
    """
    train, test = open_source("embedded"), open_source("embedded", split="test")
    num_steps = epochs * (len(train.images) // BATCH_SIZE)
    params = Classifier().init(jax.random.key(seed), jnp.zeros((1, *SHAPE), jnp.uint8))["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, 50, num_steps)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    state = optimizer.init(params)

    def loss(params: Any, images: UInt8[Array, "b 28 28 1"], labels: Int[Array, " b"]) -> Any:
        logits = classify(params, images).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params: Any, state: Any, images: Any, labels: Any) -> tuple[Any, Any, Any]:
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(seed)
    with make_bar(num_steps, "step") as bar:
        for images, labels in augmented_batches(train, num_steps, rng):
            params, state, value = step(params, state, images, labels)
            bar.update()
            bar.set_postfix_str(f"loss {float(value):.3f}")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), params)
    found = accuracy(rounded, test)
    write_atomically(out, lambda temporary: save_classifier(temporary, params))
    tell(f"{found:.1%} of the {len(test.images)} test images are classified correctly; wrote {out}")
    return found


def augmented_batches(
    source: ImageSource, num_steps: int, rng: np.random.Generator
) -> Iterator[tuple[Any, Any]]:
    """Yield shuffled batches, each image perhaps mirrored and shifted by up to two pixels."""
    images, labels = np.asarray(source.images), np.asarray(source.labels, np.int32)
    order = np.concatenate(
        [rng.permutation(len(images)) for _ in range(-(-num_steps * BATCH_SIZE // len(images)))]
    )
    for first in range(0, num_steps * BATCH_SIZE, BATCH_SIZE):
        indices = order[first : first + BATCH_SIZE]
        yield np.stack([distort(images[i], rng) for i in indices]), labels[indices]


def distort(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> Any:
    """Mirror an image with probability 1/2 and shift it by up to two pixels each way."""
    down, right = rng.integers(0, 5, 2)
    image = image[:, ::-1] if rng.random() < 0.5 else image
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    return padded[down : down + SHAPE[0], right : right + SHAPE[1]]


def accuracy(params: Any, source: ImageSource) -> float:
    """The share of images that are classified correctly."""
    logits: Float[Array, "n 10"] = jax.jit(classify)(params, np.asarray(source.images)).logits
    return float((np.asarray(logits).argmax(1) == np.asarray(source.labels)).mean())
