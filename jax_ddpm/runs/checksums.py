"""Checksums of arrays that do not depend on how an array is distributed over devices."""

import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

LANES = (0x9E3779B9, 0x7F4A7C15)  # two odd numbers, added to the indices in the two sums
WORD = 4  # bytes
BLOCK = 2**16  # words; they fit in a processor's cache

Sums = UInt32[Array | np.ndarray, " lanes"]


def checksum(array: Any) -> Sums:
    """Compute two 32-bit sums over the elements of `array`, each mixed with its own index.

    The mixing is one-to-one, so a change in a single 32-bit word, such as a flipped bit, is always
    detected. Any other change is missed with a probability of about 2^-64. The sums do not depend
    on the sharding, and a sharded array is not gathered.
    """
    if isinstance(array, jax.Array) and not _is_on_host(array):
        return _checksum_on_device(array)
    return _checksum_on_host(array)


def _is_on_host(array: jax.Array) -> bool:
    """Whether NumPy can read all of `array` in place, without compilation."""
    whole = array.is_fully_replicated and array.is_fully_addressable
    return whole and next(iter(array.devices())).platform == "cpu"


def _checksum_on_host(array: Any) -> Sums:
    words = _to_words_on_host(array)
    sums = [0] * len(LANES)
    for first in range(0, len(words), BLOCK):
        block = words[first : first + BLOCK]
        index = np.arange(len(block), dtype=np.uint32) + np.uint32(first % 2**32)
        for i, lane in enumerate(map(np.uint32, LANES)):
            sums[i] += int(_mix(block ^ _mix(index + lane)).sum(dtype=np.uint64))
    return np.array([total % 2**32 for total in sums], np.uint32)


def _to_words_on_host(array: Any) -> np.ndarray:
    """The bits of `array` as uint32 [n], with two words for each 64-bit element."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    flat = np.asarray(array).reshape(-1)
    size = min(flat.dtype.itemsize, WORD)
    return flat.view(f"uint{8 * size}").astype(np.uint32, copy=False)


@jax.jit
def _checksum_on_device(array: Array) -> Sums:
    words = _to_words(array)
    index = _make_index(words.shape)
    sums = [
        jnp.sum(_mix(words ^ _mix(index + lane)), dtype=jnp.uint32)
        for lane in map(np.uint32, LANES)
    ]
    return jnp.stack(sums)


@jax.jit
def copy_array(array: Array) -> Array:
    """Copy `array` to new memory, which it shares with no other array."""
    return jnp.copy(array)


def _to_words(array: Array) -> Array:
    """The bits of `array` as uint32, with two words along a last axis for 64-bit elements."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    size = array.dtype.itemsize
    if size >= WORD:
        return jax.lax.bitcast_convert_type(array, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)


def _make_index(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Each element's flat index in the whole array, mod 2^32. (A reshape would gather shards.)"""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    return index


def _mix(word: Any) -> Any:
    """Map 32 bits one-to-one so that each input bit changes about half of the output bits.

    Source: the last lines of MurmurHash3 (Appleby).
    """
    word = word ^ (word >> 16)
    word = word * np.uint32(0x85EBCA6B)
    word = word ^ (word >> 13)
    word = word * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """Add a checksum of `document`, which holds JSON values, to it as "seal"."""
    return {**document, "seal": _checksum_text(document)}


def is_whole(document: dict[str, Any]) -> bool:
    """Whether `document` has a seal that matches its content."""
    rest = {name: value for name, value in document.items() if name != "seal"}
    return document.get("seal") == _checksum_text(rest)


def _checksum_text(document: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
