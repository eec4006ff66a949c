"""List the pictures in a folder, the files that cannot be used, and the files left out."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jax_ddpm.errors import UserError, show_name

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# A folder with more other entries than this, and ten times as many as pictures, is no folder of
# pictures: it may be a whole disk, which somebody else's configuration names.
MAX_OTHERS, OTHERS_PER_FILE = 1_000_000, 10
OUTWARD = "a link that leaves the folder (--data.follow-links allows it)"


class Bad(NamedTuple):
    """A file that cannot be used, and the reason."""

    path: Path
    reason: str


class Listing(NamedTuple):
    """What a folder of pictures holds."""

    pictures: list[Path]
    """All picture files by name, the bad ones too."""
    bad: list[Bad]
    """Pictures that cannot be opened, and folders that must not be entered."""
    left_out: Counter[str]
    """How many other files and folders there are of each kind."""


class Folder(NamedTuple):
    """A folder to look into, and the real paths of the links that led there."""

    path: Path
    links: tuple[Path, ...] = ()


def list_pictures(folder: Path, *, follow_links: bool = False) -> Listing:
    """List the picture files in `folder` and below it.

    A link counts as the file or folder that it points to: a file in `folder`, or with
    `follow_links` anything. Hidden files and folders are left out, and so are files of other kinds.
    Raises UserError if there is no such folder, or no picture file in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a folder of pictures with --data.path")
    root, found = folder.resolve(), Listing([], [], Counter())
    for path in _walk(folder, found, follow_links):
        if path.suffix.lower() not in SUFFIXES:
            found.left_out[path.suffix.lower() or "without a suffix"] += 1
            continue
        found.pictures.append(path)
        if refusal := _find_refusal(path, root, follow_links):
            found.bad.append(Bad(path, refusal))
    if not found.pictures and not found.bad:
        kinds = describe_left_out(count_kinds(found.left_out))
        others = f", only {kinds}" if kinds else ""
        raise UserError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))}){others}")
    found.pictures.sort()
    return found


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture file in `folder` or below it, or a link out of it."""
    if not folder.is_dir():
        return False
    found = Listing([], [], Counter())
    walk = _walk(folder, found, follow_links=False)
    try:
        return any(path.suffix.lower() in SUFFIXES for path in walk) or bool(found.bad)
    except UserError:  # too many other files
        return False


def list_files(folder: Path, suffix: str) -> Iterator[Path]:
    """List the files with `suffix` in `folder` and below it. What is hidden is left out.

    Raises UserError for a folder with too many other files.
    """
    walk = _walk(folder, Listing([], [], Counter()), follow_links=False, suffixes=(suffix,))
    return (path for path in walk if path.suffix == suffix)


def count_kinds(left_out: Counter[str]) -> tuple[tuple[str, int], ...]:
    """The kinds of files that are left out, the most frequent first."""
    return tuple(sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0])))


def describe_left_out(kinds: Iterable[tuple[str, int]]) -> str:
    """Say how many files of each kind are left out."""
    return ", ".join(f"{show_name(kind)} ({count:,})" for kind, count in kinds)


def _walk(
    folder: Path, found: Listing, follow_links: bool, suffixes: Collection[str] = SUFFIXES
) -> Iterator[Path]:
    """Yield all files that are not hidden; note in `found` what is left out or not entered.

    Raises UserError if hardly any entry has one of `suffixes`, without looking at all of them.
    """
    root, to_visit, wanted, others = _require_not_all(folder), [Folder(folder)], 0, 0
    while to_visit:
        here = to_visit.pop()
        for entry in _scan(here.path, found):
            path, is_folder = here.path / entry.name, _is_folder(entry)
            if path.suffix.lower() in suffixes:
                wanted += 1
            else:
                others += 1
                _require_few(folder, others, wanted)
            if entry.name.startswith("."):
                found.left_out["hidden folders" if is_folder else "hidden files"] += 1
            elif not is_folder:
                yield path
            elif not entry.is_symlink():
                to_visit.append(Folder(path, here.links))
            else:
                to_visit += _enter_link(Folder(path, here.links), root, found, follow_links)


def _require_not_all(folder: Path) -> Path:
    """The real path of `folder`. Raises UserError for the root of all folders."""
    root = folder.resolve()
    if root == root.parent:
        raise UserError(
            f"{folder} is the whole file system: give the folder of the images with --data.path"
        )
    return root


def _scan(folder: Path, found: Listing) -> list[os.DirEntry[str]]:
    """The entries of a folder; none, and a note in `found`, if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        found.bad.append(Bad(folder, "a folder that cannot be read"))
        return []


def _require_few(folder: Path, others: int, wanted: int) -> None:
    if others > max(MAX_OTHERS, OTHERS_PER_FILE * wanted):
        raise UserError(
            f"{folder} holds more than {MAX_OTHERS:,} files and folders, few of which are images: "
            "give the folder of the images with --data.path"
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _enter_link(link: Folder, root: Path, found: Listing, follow_links: bool) -> list[Folder]:
    """The folder behind a link, if it is to be entered: it lies outside `root` and is allowed."""
    target = link.path.resolve()
    if target.is_relative_to(root):  # its pictures are found there
        found.left_out["links to folders inside"] += 1
    elif not follow_links:
        found.bad.append(Bad(link.path, OUTWARD))
    elif target in link.links or link.path.parent.resolve().is_relative_to(target):
        found.bad.append(Bad(link.path, "a link to a folder that contains it"))
    else:
        return [Folder(link.path, (*link.links, target))]
    return []


def _find_refusal(path: Path, root: Path, follow_links: bool) -> str | None:
    """The reason not to open a file; None if there is none."""
    try:
        target = path.resolve(strict=True) if path.is_symlink() else path
        if path.is_symlink() and not (follow_links or target.is_relative_to(root)):
            return OUTWARD
        if not path.is_file():
            return "not a file"
        return "an empty file" if path.stat().st_size == 0 else None
    except (OSError, RuntimeError):  # a loop of links raises either, depending on Python
        return "a link to nothing"
