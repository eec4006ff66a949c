import jax
import pytest

from jax_ddpm import runs
from jax_ddpm.cli.train import read
from jax_ddpm.config.presets import PRESETS, find_preset
from jax_ddpm.config.run import validate
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.train import train
from tests.shared.long_tests import mark_others_long

# Flags that make each system small enough for a test; everything else is the preset's own.
ONE_BLOCK = "--model.num-res-blocks 1 --model.attention-resolutions 2 --sample.respacing 3 "
SMALL = {
    "epita": "--model.dim 8 --model.dim-mults 1 2",
    "annotated": "--model.dim 8 --model.dim-mults 1 2",
    "annotated-convnext": "--model.dim 12 --model.dim-mults 1 2",
    "pulfer": "--sample.frames 5",
    "denoising-diffusion-pytorch": "--model.dim 8 --model.dim-mults 1 2 --data.image-size 16",
    "diffusers-ddpm": "--model.block-out-channels 8 8 8 8 --model.norm-num-groups 4 "
    "--model.layers-per-block 1 --data.image-size 16",
    "improved-diffusion": "--model.model-channels 32 --model.channel-mult 1 1 "
    f"--data.image-size 16 {ONE_BLOCK}",
    "guided-diffusion": "--model.model-channels 32 --model.channel-mult 1 1 "
    f"--model.num-head-channels 16 --data.image-size 16 {ONE_BLOCK}",
}
SHORT = (
    "--train.num-steps 2 --train.batch-size 4 --train.accumulate 2 --train.warmup-steps 0 "
    "--train.log-every 1 --train.sample-every 2 --train.checkpoint-every 1 --sample.num-steps 3 "
    "--train.parallel jit --data.name embedded"
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_know_their_names(name):
    assert PRESETS[name].preset == name
    validate(PRESETS[name])


@pytest.mark.slow
def test_networks_have_the_published_sizes():
    """The peers' own numbers of parameters; pulfer's includes the table of times."""
    expected = {"diffusers-ddpm": 35_746_307, "pulfer": 606_852, "guided-diffusion": 295_900_000}
    for name, count in expected.items():
        config = PRESETS[name]
        shape = (config.data.image_size or 28,) * 2 + (config.data.channels or 1,)
        params = jax.eval_shape(build(config, shape).network.init, jax.random.key(0))
        found = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert abs(found - count) < (1e5 if name == "guided-diffusion" else 1), name


def test_every_source_has_a_preset():
    assert {peer.preset for peer in PEERS.values()} <= PRESETS.keys()


def test_an_unknown_preset_gets_one_sentence():
    with pytest.raises(
        UserError,
        match=r"--preset is 'cifar', but it must be fashion-cpu, .*: did you mean 'ddpm-cifar10'",
    ):
        find_preset("cifar")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mark_others_long(SMALL, keep=("denoising-diffusion-pytorch", "guided-diffusion"))
)
def test_every_system_trains_on_the_embedded_images(name, tmp_path):
    args = f"--preset {name} --run {tmp_path / 'run'} {SHORT} {SMALL[name]}".split()
    config = read(args)[0].flags.config
    run = train(config)
    for file in (run.final_grid, run.final_gif, run.loss_curve):
        assert file.exists()
    assert runs.load(run.folder).config == config
