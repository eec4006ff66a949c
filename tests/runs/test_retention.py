import pytest

from jax_ddpm.runs.retention import Keep, choose_kept, find_best

STEPS = [0, 10, 20, 30, 40, 45]
LOSSES = {10: 3.0, 20: 1.0, 30: 1.0, 40: 2.0}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(), {0, 10, 20, 30, 40, 45}),
        (Keep(1), {45}),
        (Keep(2), {40, 45}),
        (Keep(9), {0, 10, 20, 30, 40, 45}),
        (Keep(1, best=True), {20, 45}),
        (Keep(1, every=20), {20, 40, 45}),
        (Keep(2, best=True, every=30), {20, 30, 40, 45}),
    ],
)
def test_the_newest_the_best_and_every_nth_checkpoint_stay(keep, expected):
    assert choose_kept(keep, STEPS, LOSSES) == expected


def test_the_best_is_the_first_with_the_lowest_loss_on_disk():
    assert find_best(STEPS, LOSSES) == 20
    assert find_best([10, 40, 45], LOSSES) == 40
    assert find_best([0, 45], LOSSES) is None
    assert choose_kept(Keep(1, best=True), [0, 45], {}) == {45}
