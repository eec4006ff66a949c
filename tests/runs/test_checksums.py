import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_ddpm.runs.checksums import _checksum_on_device, checksum, is_whole, seal

BITS = np.random.default_rng(0).bytes(8 * 24)


def make_array(dtype):
    """24 elements of random bits."""
    if dtype == "bool":
        return jnp.asarray(np.frombuffer(BITS[:24], np.uint8).reshape(4, 6) % 2 == 1)
    bits = np.frombuffer(BITS[: 24 * np.dtype(jnp.dtype(dtype)).itemsize], np.uint8)
    return jnp.asarray(bits.view(jnp.dtype(dtype)).reshape(4, 6))


DTYPES = [
    "float32",
    "float64",
    "bfloat16",
    "float16",
    "int32",
    "int64",
    "uint8",
    "bool",
    "complex64",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flipped_bit_changes_both_sums(dtype):
    array = make_array(dtype)
    expected = np.asarray(checksum(array))
    data = np.asarray(array).tobytes()
    bits = range(0, 8 * len(data), 8 if dtype == "bool" else 7)
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        other = np.frombuffer(bytes(flipped), array.dtype).reshape(array.shape)
        assert np.all(np.asarray(checksum(other)) != expected), bit


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sums_of_numpy_and_of_a_device_are_the_same(dtype):
    array = make_array(dtype)
    np.testing.assert_array_equal(checksum(np.asarray(array)), _checksum_on_device(array))


def test_the_sums_of_several_blocks_equal_the_sums_of_a_device():
    array = np.random.default_rng(2).normal(size=(300, 700)).astype(np.float32)
    np.testing.assert_array_equal(checksum(array), _checksum_on_device(array))


def test_zero_minus_zero_and_all_kinds_of_nan_have_different_sums():
    words = np.array([0, 1 << 31, 0x7FC00000, 0x7FC00001, 0xFFC00000], np.uint32)
    sums = {tuple(np.asarray(checksum(word.view(np.float32))).tolist()) for word in words}
    assert len(sums) == 5


def test_two_flipped_signs_and_two_swapped_values_change_the_sums():
    """A sum with odd weights would miss them: 2^31 * odd + 2^31 * odd = 0 mod 2^32."""
    array = np.asarray(make_array("float32")).ravel()
    expected = np.asarray(checksum(array))
    for i in range(1, 24):
        signs, swapped = array.copy(), array.copy()
        signs.view(np.uint32)[[0, i]] ^= np.uint32(1 << 31)
        swapped[[0, i]] = array[[i, 0]]
        assert np.all(np.asarray(checksum(signs)) != expected)
        assert np.all(np.asarray(checksum(swapped)) != expected)


def test_the_sums_never_change():
    """Other sums would make every stored checkpoint look damaged."""
    found = {
        dtype: np.asarray(checksum(make_array(dtype))).tolist() for dtype in ("float32", "bool")
    }
    assert found == {
        "float32": [2533558151, 3760354707],
        "bool": [2391324323, 957050052],
    }


def test_the_sums_do_not_depend_on_the_sharding():
    array = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    expected = np.asarray(checksum(array))
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    specs = (PartitionSpec("a"), PartitionSpec("b", "a"), PartitionSpec(), PartitionSpec(None, "b"))
    for spec in specs:
        spread = jax.device_put(array, NamedSharding(mesh, spec))
        np.testing.assert_array_equal(checksum(spread), expected)


def test_keys_and_empty_arrays_have_sums_too():
    first, second = (np.asarray(checksum(jax.random.key(seed))) for seed in (1, 2))
    assert np.all(first != second)
    np.testing.assert_array_equal(checksum(jnp.zeros((0, 3))), [0, 0])


def test_a_document_matches_its_seal_until_something_in_it_changes():
    document = seal({"format": 3, "loss": 0.1 + 0.2, "nan": None, "leaves": {"a": [[2], "f", 1]}})
    assert is_whole(document)
    assert not is_whole({**document, "loss": 0.3})
    assert not is_whole({**document, "more": 1})
    assert not is_whole({name: v for name, v in document.items() if name != "seal"})
    assert not is_whole({})
