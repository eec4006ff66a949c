"""A folder of pictures as an image source: what is in it, and which of it can be used."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int
from PIL import Image
from tqdm import tqdm

from jax_ddpm.data.pictures import (
    FORMATS,
    FolderPictures,
    Form,
    Picture,
    read_picture,
    require_few_pixels,
    why,
)
from jax_ddpm.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
SHOWN = 10
AT_ONCE = 4096
# Data sets of less, as files and decoded, are decoded at once and kept in memory.
IN_MEMORY = 2**28
JPEG_END, PLACE_OF_JPEG_END = b"\xff\xd9", 4096
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# What a PNG that says how it is turned has in it, maybe after its pixels.
SAYS_TURNED = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
EXIF_ORIENTATION = 0x0112

T = TypeVar("T")
R = TypeVar("R")


class Bad(NamedTuple):
    """A file that cannot be used, and why."""

    path: Path
    reason: str


class Pictures(NamedTuple):
    """The pictures of a folder and their classes."""

    images: Any  # uint8 [n, h, w, c], or decoded as they are asked for
    labels: Int[np.ndarray, " n"]


def open_folder(
    folder: Path,
    form: Form,
    *,
    skip_bad: bool = False,
    tell: Callable[[str], object] = print,
) -> Pictures:
    """The pictures in `folder` and below it, every one of them looked at.

    Raises UserError if there are none, if they differ in size and `form` has none, or if files
    cannot be used; with `skip_bad` the others are taken and `tell` says how many are left out.
    """
    paths, bad = find_pictures(folder)
    labels = dict(zip(paths, labels_of(paths, folder), strict=True))
    refused = {path for path, _ in bad}
    good, images, found = open_pictures([path for path in paths if path not in refused], form)
    if bad or found:
        total = len(refused | set(paths))
        report(folder, sorted([*bad, *found]), total, skip_bad, tell)
    if not good:
        raise UserError(f"{folder} holds no picture that can be read")
    return Pictures(images, np.array([labels[path] for path in good], np.int32))


def open_pictures(paths: Sequence[Path], form: Form) -> tuple[list[Path], Any, list[Bad]]:
    """The paths that can be used, their pictures, and the others; few pictures are decoded now."""
    side = form.size
    if side is not None and form.crop != "random" and small(paths, (side, side), form.channels):
        return read_all(paths, form)
    good, bad, sizes = look_at_all(paths)
    if side is not None or not good:
        return good, FolderPictures(good, form), bad
    size = one_size(sizes)
    if small(good, size, form.channels):
        good, pictures, found = read_all(good, form)
        return good, pictures, [*bad, *found]
    return good, FolderPictures(good, form, size), bad


def find_pictures(folder: Path) -> tuple[list[Path], list[Bad]]:
    """Every picture file in `folder` and below it, in order of name, and which are unusable.

    Links are taken for what they point to, if that is in the folder. Raises UserError for none.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one that holds pictures, --data.path")
    root, paths, bad = folder.resolve(), [], []
    for path in sorted(_walk(folder)):
        if not path.is_dir():
            paths.append(path)
        if refusal := _refusal(path, root):
            bad.append(Bad(path, refusal))
    if not paths and not bad:
        raise UserError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return paths, bad


def _walk(folder: Path) -> Iterator[Path]:
    """Files with a picture's suffix, and linked folders that lie elsewhere."""
    root = folder.resolve()
    for parent, folders, files in os.walk(folder, onerror=_raise):
        below = Path(parent)
        yield from (below / name for name in files if Path(name).suffix.lower() in SUFFIXES)
        for path in (below / name for name in folders):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                yield path


def _raise(error: OSError) -> None:
    raise error


def _refusal(path: Path, root: Path) -> str | None:
    """Why a file is not even opened."""
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(root):
            return "a link that leaves the folder"
        if not path.is_file():
            return "not a file"
        return "an empty file" if path.stat().st_size == 0 else None
    except (OSError, RuntimeError):  # a circle of links raises either, by the version of Python
        return "a link to nothing"


def labels_of(paths: Sequence[Path], folder: Path) -> Int[np.ndarray, " n"]:
    """Class numbers: the position of each picture's first subfolder among all of them."""
    classes = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    numbers = {name: i for i, name in enumerate(sorted(set(classes)))}
    return np.array([numbers[name] for name in classes], np.int32)


def small(paths: Sequence[Path], size: tuple[int, int], channels: int) -> bool:
    """Whether pictures of `size` are so few that they are decoded at once."""
    decoded = len(paths) * size[0] * size[1] * channels
    return decoded <= IN_MEMORY and sum(path.stat().st_size for path in paths) <= IN_MEMORY


def read_all(paths: Sequence[Path], form: Form) -> tuple[list[Path], np.ndarray, list[Bad]]:
    """The paths that can be read, their pictures, and those that cannot."""

    def read(path: Path) -> Picture | Bad:
        try:
            return read_picture(path, *form)
        except UserError as error:
            return Bad(path, _reason(error))

    found = list(in_parallel(read, paths))
    good = [path for path, one in zip(paths, found, strict=True) if not isinstance(one, Bad)]
    pictures = [one for one in found if not isinstance(one, Bad)]
    bad = [one for one in found if isinstance(one, Bad)]
    return good, np.stack(pictures) if pictures else np.empty(0, np.uint8), bad


def _reason(error: UserError) -> str:
    return why(error.__cause__ or error)


def look_at_all(
    paths: Sequence[Path],
) -> tuple[list[Path], list[Bad], dict[tuple[int, int], Path]]:
    """The paths that look whole, those that do not, and a path for every size there is."""

    def look(path: Path) -> tuple[int, int] | Bad:
        try:
            return look_at(path)
        except Exception as error:  # decoders raise errors of every kind for damaged data
            return Bad(path, why(error))

    good: list[Path] = []
    bad: list[Bad] = []
    sizes: dict[tuple[int, int], Path] = {}
    for path, found in zip(paths, in_parallel(look, paths), strict=True):
        if isinstance(found, Bad):
            bad.append(found)
        else:
            good.append(path)
            sizes.setdefault(found, path)
    return good, bad, sizes


def one_size(sizes: dict[tuple[int, int], Path]) -> tuple[int, int]:
    """The (width, height) that all pictures share. Raises UserError if two differ."""
    if len(sizes) > 1:
        ((one, first), (other, second)) = list(sizes.items())[:2]
        raise UserError(
            f"{first} is {one[0]}x{one[1]} and {second} {other[0]}x{other[1]}: "
            "give the side that all shall have, --data.image-size"
        )
    return next(iter(sizes))


def look_at(path: Path) -> tuple[int, int]:
    """(width, height) as the picture is shown.

    Raises, in many ways, unless its header can be read and the file is whole: a PNG's checksums
    are verified, a JPEG has an end, and anything else is decoded.
    """
    with Image.open(path, formats=FORMATS) as image:
        require_few_pixels(image)
        width, height = image.size
        if image.format == "PNG" and not any(word in path.read_bytes() for word in SAYS_TURNED):
            image.verify()
            return width, height
        if image.format not in ("JPEG", "MPO") or not _ends(path):
            image.load()
        turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def _ends(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - PLACE_OF_JPEG_END))
        return JPEG_END in file.read()


def in_parallel(function: Callable[[T], R], values: Sequence[T]) -> Iterator[R]:
    """`function` of each value in order, on all cores; with a bar where that takes long."""
    bar = tqdm(
        total=len(values), desc="Looking at the pictures", unit="img", delay=2, leave=False,
        disable=None,
    )  # fmt: skip
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        for first in range(0, len(values), AT_ONCE):  # a million tasks at once would fill memory
            for done in pool.map(function, values[first : first + AT_ONCE]):
                bar.update()
                yield done


def report(
    folder: Path, bad: Sequence[Bad], total: int, skip_bad: bool, tell: Callable[[str], object]
) -> None:
    """Say which files cannot be used. Raises UserError that says it unless they are skipped."""
    shown = "; ".join(f"{path.relative_to(folder)}: {reason}" for path, reason in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    count = f"{len(bad):,} of {total:,} pictures in {folder}"
    if not skip_bad:
        raise UserError(
            f"{count} cannot be used ({shown}{more}): repair or remove them, or leave them out "
            "with --data.skip-bad"
        )
    tell(f"Skipping {count} ({shown}{more})")
