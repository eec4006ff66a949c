"""Open image sources: the loader needs only random access to uint8 images [h, w, c]."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_ddpm.data.arrays import open_arrays
from jax_ddpm.data.base import ImageSource as ImageSource
from jax_ddpm.data.base import Request, require_links_inside
from jax_ddpm.data.base import Split as Split
from jax_ddpm.data.cifar10 import EXPECTED as CIFAR10_FILES
from jax_ddpm.data.cifar10 import is_cifar10, read_cifar10
from jax_ddpm.data.folder import open_folder
from jax_ddpm.data.idx import read_idx
from jax_ddpm.data.listing import holds_pictures
from jax_ddpm.data.parquet import find_files, is_parquet, open_parquet
from jax_ddpm.data.pictures import FittedArrays, Form
from jax_ddpm.data.tfds_reader import open_prepared
from jax_ddpm.errors import UserError, join_or, nearest, show_name

SourceName = str  # one of SOURCES, or the name of a data set of TensorFlow Datasets

EMBEDDED = Path(__file__).parent / "fashion_mnist_extract"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IDX_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


def open_source(
    name: SourceName,
    path: str | Path | None = None,
    split: Split = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    crop: str = "center",
    resize: str = "bicubic",
    skip_bad: bool = False,
    follow_links: bool = False,
    max_value: int | None = None,
    tell: Callable[[str], object] = print,
) -> ImageSource:
    """Open the data set called `name`.

    `embedded`: the 10,000 training and 2,000 test images of Fashion-MNIST that ship with the
    package. `idx`: IDX files with MNIST's names in the folder `path`. `fashion_mnist`: the same;
    `path` defaults to where Debian installs them. `arrays`: the .npz or .npy file `path`. `folder`:
    all pictures in `path` and its subfolders; the top subfolder is the class. With `skip_bad`,
    unreadable files are left out and `tell` says how many; with `follow_links`, links may lead out
    of the folder. `parquet`: a Parquet file, or a folder
    of them, as Hugging Face stores images. `cifar10`: an archive from CIFAR-10's home page, or its
    folder. Any other name: a data set that TensorFlow Datasets has prepared in `path`.

    For `cifar10` and the names of other data sets, `path` may also hold the images in one of the
    forms above; it is then read in that form, and `tell` says so.

    `image_size` is the side of square images; `crop` and `resize` choose the part of the picture
    and the filter. `channels` makes images grey (1) or colour (3, the default for a folder).
    `max_value` is the value in the files that means white.

    Raises UserError if the data is missing or damaged, or has no such split.

    Examples:
        >>> import jax_ddpm as jd
        >>> source = jd.open_source("embedded", split="test")
        >>> len(source.images), source.image_shape, source.class_names[7]
        (2000, (28, 28, 1), 'Sneaker')
    """
    path = None if path is None else Path(path)
    require_known(name, path, split)
    Form(crop=crop, resize=resize).check()
    request = Request(
        path,
        split,
        image_size,
        channels,
        crop,
        resize,
        skip_bad=skip_bad,
        follow_links=follow_links,
        max_value=max_value,
        tell=tell,
    )
    kind = choose_kind(name, path, tell)
    return open_prepared(name, request) if kind is None else SOURCES[kind].open(request)


class Source(NamedTuple):
    """A kind of data, and how to open it."""

    open: Callable[[Request], ImageSource]
    path: str = ""
    """Describes the path that it needs; empty if it needs none."""
    has_test_split: bool = True
    recognizes: Callable[[Path], bool] = lambda path: False
    """Whether a path that exists holds this kind of data."""


def _open_embedded(request: Request) -> ImageSource:
    source = read_idx_folder(EMBEDDED, request.split)
    return fit_source(source._replace(class_names=FASHION_CLASSES), request)


def _open_idx(request: Request) -> ImageSource:
    folder = request.path or DEBIAN_FASHION_MNIST
    require_links_inside(folder.glob("*"), request)
    return fit_source(read_idx_folder(folder, request.split), request)


def _open_arrays(request: Request) -> ImageSource:
    assert request.path is not None, "require_known has checked it"
    return fit_source(open_arrays(request.path), request)


def _open_folder(request: Request) -> ImageSource:
    assert request.path is not None, "require_known has checked it"
    return open_folder(
        request.path,
        request.form(channels=3),
        skip_bad=request.skip_bad,
        follow_links=request.follow_links,
        tell=request.tell,
    )


def _open_cifar10(request: Request) -> ImageSource:
    assert request.path is not None, "require_known has checked it"
    require_links_inside([*request.path.glob("*"), *request.path.glob("cifar-10-*/*")], request)
    return fit_source(read_cifar10(request.path, request.split), request)


def _holds_idx(path: Path) -> bool:
    return any(any(path.glob(f"{prefix}-images?idx3-ubyte*")) for prefix in IDX_PREFIX.values())


SOURCES = {
    "embedded": Source(_open_embedded),
    "fashion_mnist": Source(_open_idx),
    "idx": Source(
        _open_idx, path="the folder of IDX files, --data.path DIR", recognizes=_holds_idx
    ),
    "arrays": Source(
        _open_arrays,
        path="the .npz or .npy file, --data.path FILE",
        has_test_split=False,
        recognizes=lambda path: path.is_file() and path.suffix in (".npz", ".npy"),
    ),
    "cifar10": Source(_open_cifar10, path=f"--data.path: {CIFAR10_FILES}", recognizes=is_cifar10),
    "parquet": Source(
        open_parquet,
        path="the Parquet file or the folder of them, --data.path PATH",
        recognizes=is_parquet,
    ),
    "folder": Source(
        _open_folder,
        path="the folder of pictures, --data.path DIR",
        has_test_split=False,
        recognizes=holds_pictures,
    ),
}
DATA_SETS = ("cifar10",)  # sources that are one data set, which can also come in another form


def recognize(path: Path) -> SourceName | None:
    """The kind of data that `path` holds, one of SOURCES; None if it is none of them.

    A folder that TensorFlow Datasets uses is none of them: it may also hold the files that data
    sets were prepared from.
    """
    if not path.exists() or any(path.glob("*/*/dataset_info.json")):
        return None
    if (path / "downloads").is_dir() or any(path.glob("*/*/*/dataset_info.json")):
        return None
    return next((name for name, source in SOURCES.items() if source.recognizes(path)), None)


def choose_kind(
    name: SourceName, path: Path | None, tell: Callable[[str], object]
) -> SourceName | None:
    """Choose the entry of SOURCES that opens the data; None: TensorFlow Datasets has prepared it.

    The name of a data set leaves open how it is stored, so what `path` holds decides.
    """
    if _holds_prepared(name, path):
        return None
    if name in SOURCES and name not in DATA_SETS:
        return name
    kind = None if path is None else recognize(path)
    if kind is not None and kind != name:
        tell(f"{show_name(path)} is read as --data.name {kind}")
        return kind
    return None if path is None or name not in SOURCES else name


def has_test_part(name: SourceName, path: Path | None) -> bool:
    """Whether one of SOURCES has images set aside for tests; False for any other name."""
    source = SOURCES.get(name)
    if source is None or name != "parquet" or path is None:
        return source is not None and source.has_test_split
    try:
        return bool(find_files(path, "test"))
    except UserError:
        return False


def require_known(name: SourceName, path: Path | None, split: Split = "train") -> None:
    """Raise UserError for a misspelt name, a missing or superfluous path, or a missing split."""
    if name not in SOURCES and not (path is not None and (path / name).is_dir()):
        near = nearest(name, SOURCES.keys() - set(DATA_SETS), cutoff=0.85)  # cifar100 is no slip
        if near is not None:
            raise UserError(f"there is no data set {name}, did you mean --data.name {near}?")
    source = SOURCES.get(name)
    if path is None and source is not None and source.path and not _is_prepared(name):
        raise UserError(f"--data.name {name} needs {source.path}")
    if name == "embedded" and path is not None:
        raise UserError(
            f"--data.path {path} was given without the kind of data in it: "
            f"add --data.name {join_or(list(reversed(SOURCES))[:-1])}"
        )
    if split == "test" and source is not None and not source.has_test_split:
        raise UserError(f"--split test: --data.name {name} has no images set aside for tests")


def fit_source(source: ImageSource, request: Request) -> ImageSource:
    """Bring the images of `source` to the requested form."""
    images: UInt8[np.ndarray, "n h w c"] = source.images
    return source._replace(images=fit_images(images, request.form(images.shape[-1])))


def fit_images(images: UInt8[np.ndarray, "n h w c"], form: Form) -> Any:
    """Bring `images` to `form`: immediately if they fit in memory, otherwise on demand."""
    if form.fits(images):
        return images
    fitted = FittedArrays(images, form)
    side = form.size or max(images.shape[1:3])
    return np.stack(list(fitted)) if form.fits_in_memory(len(images), (side, side)) else fitted


def _holds_prepared(name: SourceName, path: Path | None) -> bool:
    """Whether `path` holds a prepared TFDS data set with the same name as one of SOURCES."""
    return path is not None and name in SOURCES and any(path.glob(f"{name}/*/dataset_info.json"))


def _is_prepared(name: SourceName) -> bool:
    """Whether TFDS has prepared the data set `name` in its default folder."""
    folder = os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets")
    return name in DATA_SETS and (Path(folder) / name).is_dir()


def read_idx_folder(folder: Path, split: Split = "train") -> ImageSource:
    """Read images and labels from a folder of IDX files with MNIST's names, plain or gzipped.

    Raises UserError if files are missing or damaged, or do not belong together.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}: give one that holds "
            f"{IDX_PREFIX[split]}-images-idx3-ubyte[.gz] with --data.path"
        )
    images = read_idx(_find_idx(folder, f"{IDX_PREFIX[split]}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(folder, f"{IDX_PREFIX[split]}-labels-idx1-ubyte"))
    if images.ndim != 3 or 0 in images.shape:
        raise UserError(
            f"{folder} holds images of shape {images.shape}, expected (number, height, width)"
        )
    if labels.shape != images.shape[:1]:
        raise UserError(f"{folder} holds {len(images)} images but labels of shape {labels.shape}")
    return ImageSource(images[..., None], labels)


def _find_idx(folder: Path, stem: str) -> Path:
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx")):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} does not hold {stem} or {stem}.gz")
