"""A folder of pictures as an image source: find the files, and check which can be used."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int
from PIL import Image

from jax_ddpm.data import pictures
from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.listing import Bad, count_kinds, list_pictures
from jax_ddpm.data.parallel import map_in_parallel
from jax_ddpm.data.pictures import FolderPictures, Form, Picture, explain_decoding, read_picture
from jax_ddpm.errors import UserError, one_line, show_name
from jax_ddpm.files.untrusted import read_bounded

SHOWN = 10
MAX_BYTES = 2**29  # of an encoded picture
JPEG_END, JPEG_END_IS_IN_LAST = b"\xff\xd9", 4096
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# A PNG that states an orientation contains one of these, perhaps after its pixels.
PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
EXIF_ORIENTATION = 0x0112

Size = tuple[int, int]
"""(width, height), as in Pillow."""
T = TypeVar("T")


def open_folder(
    folder: Path,
    form: Form,
    *,
    skip_bad: bool = False,
    follow_links: bool = False,
    tell: Callable[[str], object] = print,
) -> ImageSource:
    """Open the pictures in `folder` and its subfolders, and check each of them.

    Raises UserError if there are none, if they differ in size and `form` sets no size, or if files
    cannot be used. With `skip_bad`, such files are left out, and `tell` says how many. With
    `follow_links`, links may lead out of the folder.
    """
    paths, bad, left_out = list_pictures(folder, follow_links=follow_links)
    labels = dict(zip(paths, number_classes(paths, folder), strict=True))
    names = sorted({find_class(path, folder) for path in paths})
    refused = {path for path, _ in bad}
    good, images, unreadable = open_pictures([p for p in paths if p not in refused], form)
    if bad or unreadable:
        total = len(refused | set(paths))
        report_bad(folder, sorted([*bad, *unreadable]), total, skip_bad, tell)
        left_out["unusable pictures"] += len(bad) + len(unreadable)
    if not good:
        raise UserError(f"{folder} holds no picture that can be read")
    numbers = np.array([labels[path] for path in good], np.int32)
    known = tuple(names) if names != [""] else ()
    return ImageSource(images, numbers, known, count_kinds(left_out))


def open_pictures(
    paths: Sequence[Path], form: Form
) -> tuple[list[Path], np.ndarray | FolderPictures, list[Bad]]:
    """Open files: the usable paths, their pictures, and the unusable paths with reasons.

    Pictures are decoded immediately if they are few, otherwise on demand.
    """
    if form.size is not None and are_few(paths, form, (form.size, form.size)):
        return decode_all(paths, form)
    good, bad, sizes = inspect_all(paths)
    if form.size is not None or not good:
        return good, FolderPictures(good, form), bad
    size = require_one_size(sizes)
    if are_few(good, form, size):
        good, images, unreadable = decode_all(good, form)
        return good, images, [*bad, *unreadable]
    return good, FolderPictures(good, form, size), bad


def number_classes(paths: Sequence[Path], folder: Path) -> Int[np.ndarray, " n"]:
    """Number the classes: each picture's top subfolder, by its position among all of them."""
    classes = [find_class(path, folder) for path in paths]
    numbers = {name: i for i, name in enumerate(sorted(set(classes)))}
    return np.array([numbers[name] for name in classes], np.int32)


def find_class(path: Path, folder: Path) -> str:
    """The name of a picture's class, its top subfolder; "" for a picture outside any."""
    return path.relative_to(folder).parts[0] if path.parent != folder else ""


def are_few(paths: Sequence[Path], form: Form, size: Size) -> bool:
    """Whether the pictures, as files and decoded, are small enough to decode immediately."""
    if not form.fits_in_memory(len(paths), size):
        return False
    return sum(path.stat().st_size for path in paths) <= pictures.IN_MEMORY


def decode_all(paths: Sequence[Path], form: Form) -> tuple[list[Path], np.ndarray, list[Bad]]:
    """Decode pictures: the paths that can be read, their pictures, and the paths that cannot."""

    def decode(path: Path) -> Picture | Bad:
        try:
            return read_picture(path, form)
        except UserError as error:
            return Bad(path, explain_decoding(error.__cause__ or error))

    good, decoded, bad = _split(paths, map_in_parallel(decode, paths))
    return good, np.stack(decoded) if decoded else np.empty(0, np.uint8), bad


def inspect_all(paths: Sequence[Path]) -> tuple[list[Path], list[Bad], dict[Size, Path]]:
    """Inspect files: the paths of complete pictures, the other paths, and one path per size."""

    def inspect(path: Path) -> Size | Bad:
        try:
            return inspect_picture(path)
        except Exception as error:  # decoders raise errors of every kind for damaged data
            return Bad(path, explain_decoding(error))

    good, sizes, bad = _split(paths, map_in_parallel(inspect, paths))
    first_of: dict[Size, Path] = {}
    for path, size in zip(good, sizes, strict=True):
        first_of.setdefault(size, path)
    return good, bad, first_of


def _split(
    paths: Sequence[Path], results: Iterator[T | Bad]
) -> tuple[list[Path], list[T], list[Bad]]:
    """Separate the paths with a result, their results, and the bad paths."""
    good: list[Path] = []
    found: list[T] = []
    bad: list[Bad] = []
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Bad):
            bad.append(result)
        else:
            good.append(path)
            found.append(result)
    return good, found, bad


def require_one_size(sizes: dict[Size, Path]) -> Size:
    """The size that all pictures share. Raises UserError if two differ."""
    if len(sizes) > 1:
        ((one, first), (other, second)) = list(sizes.items())[:2]
        raise UserError(
            f"{first} is {one[0]}x{one[1]} and {second} is {other[0]}x{other[1]}: "
            "choose one size for all pictures with --data.image-size"
        )
    return next(iter(sizes))


def inspect_picture(path: Path) -> Size:
    """Return the size of the picture as it is displayed, after checking the file.

    Raises errors of many kinds unless the header can be read and the file is complete: the
    checksums of a PNG are verified, a JPEG must have an end marker, and other formats are decoded.
    """
    with Image.open(path, formats=pictures.FORMATS) as image:
        pictures.require_few_pixels(image)
        width, height = image.size
        if image.format == "PNG" and not _may_be_turned(path):
            image.verify()
            return width, height
        if image.format == "TIFF":  # versions of Pillow differ in when they rotate it
            return pictures.open_upright(path).size
        if image.format not in ("JPEG", "MPO") or not _has_jpeg_end(path):
            image.load()
        turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def _may_be_turned(path: Path) -> bool:
    """Whether a PNG may state an orientation. Raises UserError for a file of absurd size."""
    data = read_bounded(path, MAX_BYTES)
    return any(mark in data for mark in PNG_ORIENTATIONS)


def _has_jpeg_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - JPEG_END_IS_IN_LAST))
        return JPEG_END in file.read()


def report_bad(
    folder: Path, bad: Sequence[Bad], total: int, skip_bad: bool, tell: Callable[[str], object]
) -> None:
    """Tell which unusable files are skipped; without `skip_bad`, raise UserError instead."""
    shown = "; ".join(
        f"{show_name(path.relative_to(folder))}: {reason}" for path, reason in bad[:SHOWN]
    )
    more = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    count = f"{len(bad):,} of {total:,} pictures in {folder}"
    if not skip_bad:
        raise UserError(
            f"{count} cannot be used ({shown}{more}): repair or remove them, or leave them out "
            "with --data.skip-bad"
        )
    tell(one_line(f"Skipping {count} ({shown}{more})"))
