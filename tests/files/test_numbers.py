import numpy as np
import pytest

from jax_ddpm.cli.train import read
from jax_ddpm.errors import UserError
from jax_ddpm.files.numbers import read_numbers


@pytest.mark.parametrize("text", ["0.1 0.2 0.3", "0.1,0.2,\n0.3\n", "1e-1\r\n2e-1\r\n.3"])
def test_numbers_are_read_from_text(tmp_path, text):
    (tmp_path / "betas.txt").write_text(text)
    assert read_numbers(tmp_path / "betas.txt") == (0.1, 0.2, 0.3)


def test_numbers_are_read_from_an_array(tmp_path):
    np.save(tmp_path / "betas.npy", np.array([0.1, 0.2]))
    assert read_numbers(tmp_path / "betas.npy") == (0.1, 0.2)


@pytest.mark.parametrize("data", [b"", b"0.1 x", b"\xff\xfe", b"\x93NUMPY\x01"])
def test_anything_else_gets_one_sentence(tmp_path, data):
    (tmp_path / "betas").write_bytes(data)
    with pytest.raises(UserError, match=r"betas (cannot be read as a list|has numbers of shape)"):
        read_numbers(tmp_path / "betas")


def test_a_file_of_betas_decides_the_chain(tmp_path):
    (tmp_path / "b.txt").write_text("0.1 0.2 0.3")
    parsed, followed = read(["--preset", "epita", "--betas-file", str(tmp_path / "b.txt")])
    diffusion = parsed.flags.config.diffusion
    assert (diffusion.betas, diffusion.num_timesteps) == ((0.1, 0.2, 0.3), 3)
    assert {change.flag for change in followed} == {
        "--diffusion.num-timesteps",
        "--sample.num-steps",
    }
    with pytest.raises(UserError, match=r"--betas-file and --diffusion\.betas both give the betas"):
        read(["--betas-file", str(tmp_path / "b.txt"), "--diffusion.betas", "0.1"])
