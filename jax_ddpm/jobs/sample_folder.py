"""Write drawn images as single PNG files, as they come; a second call draws what is missing."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import report_disk_errors, write_atomically
from jax_ddpm.files.images import save_png
from jax_ddpm.files.untrusted import read_json
from jax_ddpm.jobs.generate import Samples
from jax_ddpm.jobs.messages import make_bar, tell

FACTS = "samples.json"


def is_folder(out: Path) -> bool:
    """Whether `out` names a folder: it is one already, or has no suffix."""
    return out.is_dir() or not out.suffix


def name_image(folder: Path, index: int) -> Path:
    """The file of image `index`."""
    return folder / f"{index:06}.png"


def count_finished(folder: Path, num: int) -> int:
    """Count the images from the first one that are there without a gap."""
    return next((i for i in range(num) if not name_image(folder, i).is_file()), num)


def open_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Make the folder, and write down which images it holds.

    Raises UserError if it holds images of other settings, or other pictures.
    """
    path, facts = folder / FACTS, json.loads(json.dumps(facts))
    if path.is_file():
        found = read_json(path, "what jax-ddpm sample wrote beside its images")
        differ = [
            n for n, value in facts.items() if not isinstance(found, dict) or found.get(n) != value
        ]
        if differ:
            raise UserError(
                f"--out {folder} holds images drawn with other {differ[0]}: give another folder"
            )
        return
    if folder.is_dir() and any(folder.glob("*.png")):
        raise UserError(f"--out {folder} holds other pictures: give another folder")
    with report_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_images(
    folder: Path, batches: Callable[[int], Iterable[Samples]], num: int, batch_size: int
) -> None:
    """Write images as they are drawn; `batches(first)` draws them from number `first` on."""
    finished = count_finished(folder, num)
    if finished == num:
        tell(f"{folder} holds all {num} images already")
        return
    first = finished // batch_size * batch_size  # whole batches round alike
    if first:
        tell(f"Continuing at image {first}")
    with make_bar(num, "img", initial=first) as bar:
        index = first
        for batch in batches(first):
            for image in batch.images:
                if is_main_process():
                    save_png(name_image(folder, index), image)
                index += 1
            bar.update(len(batch.images))


def tell_next(folder: Path, num: int) -> None:
    """Say where the images are, and how another tool measures them."""
    tell(f"Wrote {num} images to {folder}")
    tell(f"FID with torch-fidelity: fidelity --fid --input1 {folder} --input2 FOLDER_OR_DATA_SET")
