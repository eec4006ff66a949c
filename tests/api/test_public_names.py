"""The public names of `jax_ddpm`."""

import pytest

import jax_ddpm as jd


def test_every_public_name_exists():
    missing = [name for name in jd.__all__ if getattr(jd, name, None) is None]
    assert missing == []
    assert set(jd.__all__) <= set(dir(jd))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jax_ddpm' has no attribute 'ddmi'"):
        _ = jd.ddmi
