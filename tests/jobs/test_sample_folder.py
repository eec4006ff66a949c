import json

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.config.jobs import SampleJob
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import sample_folder
from jax_ddpm.jobs.sample import sample_run


def read_folder(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def drawn(trained_run, tmp_path_factory):
    """Five images in a folder, in batches of two."""
    return sample_run(
        trained_run, SampleJob(5, tmp_path_factory.mktemp("a") / "drawn", batch_size=2)
    )


@pytest.mark.slow
@pytest.mark.guard
def test_every_image_gets_its_file_and_is_that_of_the_array(trained_run, drawn, tmp_path):
    images = read_folder(drawn)
    assert list(images) == [f"{i:06}.png" for i in range(5)]
    sample_run(trained_run, SampleJob(5, tmp_path / "a.npz", batch_size=2))
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(np.stack(list(images.values())), file["arr_0"][..., 0])


@pytest.mark.slow
def test_a_second_call_draws_only_what_is_missing(trained_run, drawn, monkeypatch, capsys):
    before = read_folder(drawn)
    for i in (3, 4):
        sample_folder.name_image(drawn, i).unlink()
    written = []
    real = sample_folder.save_png
    monkeypatch.setattr(
        sample_folder,
        "save_png",
        lambda path, image: (written.append(path.name), real(path, image)),
    )
    job = SampleJob(5, drawn, batch_size=2)
    sample_run(trained_run, job)
    assert written == ["000002.png", "000003.png", "000004.png"]  # from the start of a batch
    after = read_folder(drawn)
    assert all((before[name] == after[name]).all() for name in before)
    sample_run(trained_run, job)
    out = capsys.readouterr().out
    assert "Continuing at image 2" in out and "holds all 5 images already" in out
    assert f"fidelity --fid --input1 {drawn} --input2" in out


@pytest.mark.slow
def test_images_of_other_settings_are_never_mixed(trained_run, drawn, tmp_path):
    with pytest.raises(UserError, match="drawn with other seed: give another folder"):
        sample_run(trained_run, SampleJob(5, drawn, seed=1))
    with pytest.raises(UserError, match="drawn with other settings"):
        sample_run(trained_run, SampleJob(5, drawn), {"steps": 2})
    assert json.loads((drawn / "samples.json").read_text())["step"] == 12
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds other pictures"):
        sample_run(trained_run, SampleJob(5, tmp_path))
    with pytest.raises(UserError, match="--trajectory needs --out FILE"):
        sample_run(trained_run, SampleJob(5, tmp_path / "new", trajectory=True))
    assert not (tmp_path / "new").exists()
