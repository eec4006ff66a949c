"""Write drawn images to files: an image grid, a GIF, or an array that grows as images come."""

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jax_ddpm.config.jobs import EMA, SampleJob, Weights
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.data.summary import name_class
from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.images import Pixels, find_scale, make_image_grid, save_gif, save_png
from jax_ddpm.jobs.edit import Edit, Interpolation
from jax_ddpm.jobs.edit_pictures import NOTHING, Beside, add_captions, add_pictures
from jax_ddpm.jobs.generate import Samples, collect, show_progress

SUFFIXES = (".png", ".gif", ".npz")
MAX_PIXELS = 2**30  # in all frames of a picture
MAX_NAME = 100  # characters of a default name


def check_suffix(out: Path) -> None:
    """Raise UserError unless `out` names a PNG, GIF or NPZ file."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--out {out} must end in .png (an image grid), .gif or .npz, or be a folder"
        )


def require_possible_size(
    files: Sequence[Path], num: int, image_shape: tuple[int, int, int], num_frames: int
) -> None:
    """Raise UserError for an image grid or a GIF that is too large for the memory or a viewer."""
    height, width, _ = image_shape
    pixels = num * height * width * find_scale(height, width) ** 2
    for path in files:
        is_gif, is_array = path.suffix.lower() == ".gif", path.suffix.lower() == ".npz"
        if not is_array and pixels * (num_frames if is_gif else 1) > MAX_PIXELS:
            what = f"a GIF of {num_frames} frames" if is_gif else "one image grid"
            raise UserError(
                f"{num:,} images of {height}x{width} are too many for {what} ({path.name}): give a "
                "folder or an .npz file with --out, which are written as the images come"
            )


def list_files(out: Path, trajectory: bool) -> list[Path]:
    """The files to write: `out`, and a GIF beside it if the `trajectory` is wanted."""
    return list(dict.fromkeys([out, out.with_suffix(".gif")] if trajectory else [out]))


def write_files(
    files: Sequence[Path],
    batches: Iterable[Samples],
    num: int,
    *,
    columns: int | None = None,
    class_names: Sequence[str] = (),
    beside: Beside = NOTHING,
) -> None:
    """Write `num` images to each of `files`. An array alone is written as the images come."""
    if [path.suffix.lower() for path in files] == [".npz"]:
        write_npz(files[0], show_progress(batches, num), num, class_names)
        return
    samples = collect(show_progress(batches, num))
    for path in files:
        write_samples(path, samples, columns, class_names, beside)


def write_samples(
    out: Path,
    samples: Samples,
    columns: int | None = None,
    class_names: Sequence[str] = (),
    beside: Beside = NOTHING,
) -> None:
    """Write `samples` as an image grid (PNG), an animated grid (GIF) or an array (NPZ).

    The suffix of `out` decides. The grid has `columns` columns; by default it is square. If classes
    have names, it shows them, and it shows the pictures of `beside`. Only process 0 writes.
    """
    if not is_main_process():
        return
    captions = add_captions(name_images(samples, class_names), len(samples.images), beside)

    def grid(images: Pixels) -> UInt8[np.ndarray, "H W c"]:
        shown = add_pictures(images, beside)
        return make_image_grid(shown, columns=columns, captions=captions)

    match out.suffix.lower():
        case ".png":
            save_png(out, grid(samples.images))
        case ".gif":
            save_gif(out, [grid(frame) for frame in samples.frames])
        case ".npz":
            write_npz(out, [samples], len(samples.images), class_names)


def name_images(samples: Samples, class_names: Sequence[str]) -> list[str]:
    """The name of each image's class; [] if there are no names."""
    if samples.labels is None or not class_names:
        return []
    return [name_class(tuple(class_names), int(label)) for label in samples.labels]


def write_npz(
    out: Path, batches: Iterable[Samples], num: int, class_names: Sequence[str] = ()
) -> None:
    """Write the arrays arr_0 (images), labels and class_names, holding one batch in memory.

    The file appears under its name when it is complete. Only process 0 writes.
    """
    if is_main_process():
        write_atomically(out, lambda temporary: _fill_npz(temporary, batches, num, class_names))
        return
    for _ in batches:  # every process takes part in drawing
        pass


def _fill_npz(path: Path, batches: Iterable[Samples], num: int, class_names: Sequence[str]) -> None:
    labels: list[np.ndarray] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("arr_0.npy", "w", force_zip64=True) as stream:
            for i, batch in enumerate(batches):
                if i == 0:
                    shape = (num, *batch.images.shape[1:])
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(stream, header)
                stream.write(np.ascontiguousarray(batch.images).data)
                labels += [] if batch.labels is None else [batch.labels]
        more = {"labels": np.concatenate(labels).astype(np.int32)} if labels else {}
        more |= {"class_names": np.array(class_names, np.str_)} if labels and class_names else {}
        for name, array in more.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def make_name(
    job: SampleJob,
    of_run: SampleConfig,
    changes: Mapping[str, Any],
    *,
    weights: Weights = EMA,
    edit: Edit | None = None,
) -> str:
    """The default name of the PNG file: what differs from drawing the run as it is, and the seed.

    So images that differ never replace each other.
    """
    parts = [*_name_edit(edit), *_name_settings(of_run, changes)]
    parts += [f"label_{'_'.join(map(str, job.label))}"] if job.label else []
    parts += [f"classifier_{Path(job.classifier).stem}"] if job.classifier is not None else []
    parts += list(_name_fields(weights, EMA))
    parts += list(_name_fields(job, SampleJob(), ("num", "dtype")))
    name = re.sub(r"[^\w.+-]+", "-", "_".join([*parts, f"seed_{job.seed}"]))
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}_{zlib.crc32(name.encode()):08x}"
    return f"{name}.png"


def _name_edit(edit: Edit | None) -> list[str]:
    """The edit, its pictures, and the settings of it that are not the usual ones."""
    if edit is None:
        return []
    pictures = edit.images if isinstance(edit, Interpolation) else (edit.image,)
    usual = {f.name: f.default for f in fields(edit) if f.default is not MISSING}
    given = {name: getattr(edit, name) for name in usual}
    others = [f"{name}_{_format(value)}" for name, value in given.items() if value != usual[name]]
    return [edit.name, *(path.stem for path in pictures), *others]


def _name_settings(of_run: SampleConfig, changes: Mapping[str, Any]) -> list[str]:
    """The settings that the user changed, the sampler first and without its flag's name."""
    named = {"num_steps" if name == "steps" else name: value for name, value in changes.items()}
    differ = {name: value for name, value in named.items() if value != getattr(of_run, name)}
    sampler = [differ.pop("sampler")] if "sampler" in differ else []
    return [*sampler, *(f"{name}_{_format(value)}" for name, value in differ.items())]


def _name_fields(given: Any, usual: Any, names: Sequence[str] = ()) -> Iterable[str]:
    for name in names or [f.name for f in fields(given)]:
        value = getattr(given, name)
        if value != getattr(usual, name):
            yield f"{name}_{_format(value)}"


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_format, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
