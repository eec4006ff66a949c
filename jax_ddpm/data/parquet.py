"""Read images from Parquet files, as Hugging Face stores its data sets of images."""

import io
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_ddpm.data import pictures
from jax_ddpm.data.base import ImageSource, Request, Split, require_links_inside
from jax_ddpm.data.listing import list_files
from jax_ddpm.data.parallel import map_in_parallel
from jax_ddpm.data.pictures import Form, Picture, Position, explain_decoding, fit_picture
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain, require_bounded

SUFFIX = ".parquet"
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "class")
# How file names and folders say which part of the data they hold.
PARTS = {
    "train": re.compile(r"(?<![a-z0-9])train(ing)?(?![a-z0-9])"),
    "test": re.compile(r"(?<![a-z0-9])test(ing)?(?![a-z0-9])"),
    "validation": re.compile(r"(?<![a-z0-9])(validation|valid|val|dev)(?![a-z0-9])"),
}
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
CACHED = 2**30  # bytes of encoded pictures that stay in memory


def is_parquet(path: Path) -> bool:
    """Whether `path` is a Parquet file, or a folder with one in it or below."""
    if not path.is_dir():
        return path.suffix == SUFFIX and path.is_file()
    try:
        return any(list_files(path, SUFFIX))
    except UserError:  # too many other files
        return False


def open_parquet(request: Request) -> ImageSource:
    """Open the requested part of the images in a Parquet file, or in a folder of them.

    The classes are those of a column of whole numbers called label; without it, the class is 0.
    Raises UserError if pyarrow is not installed, for files without a column of images, if there is
    no such part, and if pictures cannot be read.
    """
    assert request.path is not None, "the caller has checked it"
    path, parquet = request.path, import_pyarrow(request.path)
    files = find_files(path, request.split)
    require_links_inside(files, request)
    groups = Groups([open_file(parquet, file) for file in files], path)
    if groups.count == 0:
        raise UserError(f"{path} holds no images: its Parquet files have no rows")
    first = groups.open_picture(0)
    form = request.form(channels=1 if first.mode in GREY else 3)
    size = first.size if form.size is None else (form.size, form.size)
    images: Any = ParquetPictures(groups, form, size)
    if form.fits_in_memory(groups.count, size[::-1]) and groups.num_bytes <= pictures.IN_MEMORY:
        images = np.stack(list(map_in_parallel(images.__getitem__, range(groups.count))))
    return ImageSource(images, *read_labels(groups))


def import_pyarrow(path: Path) -> Any:
    """Import pyarrow's reader of Parquet files. Raises UserError if it is missing."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"{path} holds Parquet files, which need pyarrow ({explain(error)}): "
            "pip install 'jax_ddpm[parquet]'"
        ) from error
    return parquet


def find_files(path: Path, split: Split) -> list[Path]:
    """Find the files of one part of the data, in order of name.

    File names, or else folders, say which part they hold, as in train-00000-of-00004.parquet. Files
    that do not say so are training data. If there is no test part, the validation part is used.
    Raises UserError if there are no files, or none of this part.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in list_files(path, SUFFIX) if file.is_file())
    else:
        raise UserError(f"there is no {path}: give a Parquet file or a folder with --data.path")
    if not files:
        raise UserError(f"{path} holds no Parquet file (*{SUFFIX})")
    if path.is_file() and split == "train":
        return files
    by_part: dict[str, list[Path]] = {}
    for file in files:
        by_part.setdefault(find_part(file, path), []).append(file)
    names = ("train",) if split == "train" else ("test", "validation")
    for name in names:
        if name in by_part:
            return by_part[name]
    raise UserError(f"{path} has no {' or '.join(names)} part, only {', '.join(sorted(by_part))}")


def find_part(file: Path, root: Path) -> str:
    """The part of the data that `file` holds, from its name or the folders between it and `root`.

    "train" if neither says so.
    """
    places = file.relative_to(root).parts if root.is_dir() else (file.name,)
    for place in reversed(places):
        for part, pattern in PARTS.items():
            if pattern.search(place.lower()):
                return part
    return "train"


def open_file(parquet: Any, path: Path) -> Any:
    """Open a Parquet file and read its table of contents. Raises UserError if it is damaged."""
    try:
        file = parquet.ParquetFile(path)
        numbers = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        num_bytes = sum(group.total_byte_size for group in numbers)
        rows = sum(group.num_rows for group in numbers)
    except Exception as error:  # pyarrow raises many kinds of errors for damaged files
        raise UserError(f"{path} is not a complete Parquet file: {explain(error)}") from error
    require_bounded(num_bytes, path)
    if rows != file.metadata.num_rows or any(group.num_rows < 0 for group in numbers):
        raise UserError(f"{path} is damaged: its number of rows does not add up")
    return file, path


class Groups:
    """The row groups of several Parquet files, as one column of encoded pictures.

    A group is read as a whole; the last groups read stay in memory, up to CACHED bytes.
    """

    def __init__(self, files: Sequence[tuple[Any, Path]], root: Path) -> None:
        """`files`: opened files with their paths, which lie in `root`."""
        self.files, self.root = files, root
        self.features = read_features(files[0][0])
        self.image = find_image(files[0][0], self.features, files[0][1])
        self.places = [(i, j) for i, (f, _) in enumerate(files) for j in range(f.num_row_groups)]
        sizes = [files[i][0].metadata.row_group(j).num_rows for i, j in self.places]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.count = int(self.ends[-1]) if sizes else 0
        self.num_bytes = sum(
            self.files[i][0].metadata.row_group(j).total_byte_size for i, j in self.places
        )
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def open_picture(self, index: int) -> Any:
        """Decode picture number `index`. Raises UserError if it cannot be decoded."""
        group = int(np.searchsorted(self.ends, index, side="right"))
        row = int(index - (self.ends[group - 1] if group else 0))
        path = self.files[self.places[group][0]][1]
        try:
            value = self._read(group)[row].as_py()
            encoded = value.get("bytes") if isinstance(value, dict) else value
            if not encoded:
                raise ValueError("its bytes are not in the file")
            return pictures.open_upright(io.BytesIO(encoded))
        except Exception as error:  # pyarrow and decoders raise errors of every kind
            raise UserError(
                f"image {index} of {self.root} (in {path.name}) cannot be read as a picture: "
                f"{explain_decoding(error)}"
            ) from error

    def read_column(self, name: str) -> Iterator[Any]:
        """Read the values of a column of every file. Raises UserError for a file without it."""
        for file, path in self.files:
            try:
                yield from file.read(columns=[name]).column(name).to_pylist()
            except Exception as error:
                raise UserError(
                    f"{name} of {path} cannot be read ({explain(error)}): all Parquet files of a "
                    "data set must have the same columns"
                ) from error

    def _read(self, group: int) -> Any:
        """Read one row group, or take it from the cache."""
        with self._lock:
            if group not in self._cache:
                file, number = self.places[group]
                table = self.files[file][0].read_row_group(number, columns=[self.image])
                self._cache[group] = table.column(self.image)
                while len(self._cache) > 1 and self._count_bytes() > CACHED:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            return self._cache[group]

    def _count_bytes(self) -> int:
        return sum(column.nbytes for column in self._cache.values())


def read_features(file: Any) -> dict[str, Any]:
    """Read what Hugging Face says about each column; {} if the file has no such text."""
    try:
        text = (file.schema_arrow.metadata or {})[b"huggingface"]
        features = json.loads(text)["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def find_image(file: Any, features: dict[str, Any], path: Path) -> str:
    """The name of the column of images: "image" or "img", or the only one that can be.

    Raises UserError if there is none, or several with other names.
    """
    schema, found = file.schema_arrow, []
    for field in schema:
        kind = str(field.type)
        in_struct = kind.startswith("struct<") and re.search(r"\bbytes: (large_)?binary", kind)
        if in_struct or kind in ("binary", "large_binary"):
            found.append(field.name)
    marked = [name for name in found if features.get(name, {}).get("_type") == "Image"]
    known = [name for name in IMAGE_NAMES if name in found]
    for names in (known, marked, found):
        if len(names) == 1:
            return names[0]
    raise UserError(
        f"{path} has the columns {', '.join(schema.names)}, but exactly one of them must hold "
        "encoded pictures: call it image"
    )


def read_labels(groups: Groups) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Read the class of every image, and the names of the classes if the files have them.

    Raises UserError for labels that are not whole numbers from 0.
    """
    features, schema = groups.features, groups.files[0][0].schema_arrow
    marked = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
    integers = [field.name for field in schema if re.fullmatch(r"u?int\d+", str(field.type))]
    known = [name for name in LABEL_NAMES if name in integers]
    name = next((name for name in [*known, *marked] if name in integers), None)
    if name is None:
        return np.zeros(groups.count, np.int32), ()
    values = list(groups.read_column(name))
    if not all(isinstance(value, int) and 0 <= value < 2**31 for value in values):
        raise UserError(
            f"{name} of {groups.root} is not one class number, 0 or more, for each image"
        )
    names = features.get(name, {}).get("names")
    plain = isinstance(names, list) and all(isinstance(text, str) for text in names)
    return np.array(values, np.int32), tuple(names) if plain else ()


class ParquetPictures(Sequence[Picture]):
    """Pictures from Parquet files, each decoded on demand."""

    def __init__(self, groups: Groups, form: Form, size: tuple[int, int]) -> None:
        """`size`: (width, height) of every picture in its form."""
        self.groups, self.form, self.size = groups, form, size

    def __len__(self) -> int:
        return self.groups.count

    def __getitem__(self, index: Any) -> Any:
        return self.cut_at(index, None)

    def cut_at(self, index: Any, position: Position | None) -> Any:
        """Return picture number `index`, cropped at `position`.

        Raises UserError if it cannot be decoded or has another size than the first.
        """
        picture = fit_picture(self.groups.open_picture(int(index)), self.form, position)
        if picture.shape[1::-1] != self.size:
            width, height = self.size
            raise UserError(
                f"image {index} of {self.groups.root} is {picture.shape[1]}x{picture.shape[0]} and "
                f"the first is {width}x{height}: choose one size for all with --data.image-size"
            )
        return picture
