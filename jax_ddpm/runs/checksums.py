"""Checksums of arrays that do not depend on how an array is spread over devices."""

import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

LANES = (0x9E3779B9, 0x7F4A7C15)  # two odd numbers: where the two sums start their counting
WORD = 4  # bytes

Sums = UInt32[Array, " lanes"]


@jax.jit
def checksum(array: Array) -> Sums:
    """Two 32-bit sums over the elements of `array`, each mixed with its own index.

    The mixing is one-to-one, so a change of one 32-bit word always shows: every single flipped bit
    does. Any other change goes unseen with a probability of about 2^-64. A sum over elements needs
    no gathering where the array is sharded, and comes out the same for every sharding.
    """
    words = _to_words(array)
    index = _make_index(words.shape)
    return jnp.stack([jnp.sum(_mix(words ^ _mix(index + lane)), dtype=jnp.uint32)
                      for lane in map(np.uint32, LANES)])  # fmt: skip


@jax.jit
def copy_array(array: Array) -> Array:
    """`array` in memory of its own."""
    return jnp.copy(array)


def _to_words(array: Array) -> Array:
    """The bits of `array` as uint32, two along a last axis where an element has 64."""
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
    """Each element's place in the whole array, mod 2^32; no reshape, which would gather shards."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    return index


def _mix(word: Array) -> Array:
    """A one-to-one map of 32 bits in which each input bit moves half of the output bits.

    Source: the last lines of MurmurHash3 (Appleby).
    """
    word ^= word >> 16
    word *= np.uint32(0x85EBCA6B)
    word ^= word >> 13
    word *= np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """`document`, JSON values, with a checksum of itself."""
    return {**document, "seal": _checksum_text(document)}


def is_whole(document: dict[str, Any]) -> bool:
    """Whether `document` carries a seal, and its own."""
    rest = {name: value for name, value in document.items() if name != "seal"}
    return document.get("seal") == _checksum_text(rest)


def _checksum_text(document: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
