import functools

import pytest

import jax_ddpm as jd
from jax_ddpm.api.by_value import ByValue
from jax_ddpm.samplers.registry import Options


def make_sampler(name, **settings):
    """Make the sampler called `name` from scratch."""
    schedule = jd.named_schedule("cosine", 20)
    options = Options(8, jd.level_of_t(schedule), jd.level_of_sigma(schedule), **settings)
    return jd.SAMPLERS[name].make(options)


@pytest.mark.parametrize("name", jd.SAMPLERS)
def test_a_sampler_made_twice_is_equal(name):
    assert ByValue(make_sampler(name, churn=1.0)) == ByValue(make_sampler(name, churn=1.0))
    assert hash(ByValue(make_sampler(name))) == hash(ByValue(make_sampler(name)))


def test_other_arguments_make_another_sampler():
    assert ByValue(jd.ddim()) != ByValue(jd.ddim(eta=0.5))
    assert ByValue(jd.ddpm("fixed_small")) != ByValue(jd.ddpm("fixed_large"))
    assert ByValue(make_sampler("heun", churn=1.0)) != ByValue(make_sampler("heun", churn=2.0))
    assert len({ByValue(make_sampler(name)) for name in jd.SAMPLERS}) == len(jd.SAMPLERS)


def test_schedules_are_compared_by_their_tables():
    cosine = jd.named_schedule("cosine", 20)
    assert ByValue(cosine) == ByValue(jd.named_schedule("cosine", 20))
    assert ByValue(cosine) != ByValue(jd.named_schedule("cosine", 21))
    assert ByValue(cosine) != ByValue(cosine.replace(betas=cosine.betas * 2))


def test_functions_of_the_user_are_compared_by_identity():
    """Equal code says nothing about the globals that it refers to, which a notebook may change."""
    first, second = (lambda x: x for _ in range(2))
    assert first.__code__ is second.__code__
    assert ByValue(first) != ByValue(second)
    assert ByValue(first) == ByValue(first)


def test_numbers_of_different_types_are_different():
    assert len({ByValue(1), ByValue(1.0), ByValue(True)}) == 3


def test_a_decorated_function_is_not_the_one_inside():
    """`functools.wraps` copies the name and the module of what it wraps."""
    inside = jd.make_network(jd.UNetConfig(), (8, 8, 3)).apply_fn

    @functools.wraps(inside)
    def wrapped(*args, **kwargs):
        return 2 * inside(*args, **kwargs)

    @functools.wraps(inside)
    def other(*args, **kwargs):
        return 3 * inside(*args, **kwargs)

    assert len({ByValue(inside), ByValue(wrapped), ByValue(other)}) == 3
