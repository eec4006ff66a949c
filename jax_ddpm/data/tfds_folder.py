"""Find and describe a data set that TensorFlow Datasets has prepared, from its JSON files alone.

The files may come from a stranger. They are read as data: no class that they name is imported, and
nothing is fetched.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.data.array_record import Shard
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain, follow_inside, read_bounded, read_json

INFO, FEATURES = "dataset_info.json", "features.json"
NAME = re.compile(
    r"(?P<name>\w+)(/(?P<config>(?!\d+\.\d+\.\d+$)[\w.+-]+?))?([:/](?P<version>\d+\.\d+\.\d+))?",
    re.ASCII,
)
VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
# The features of TensorFlow Datasets. Only pictures and class labels are read.
KINDS = (
    *(
        "Image",
        "LabeledImage",
        "ClassLabel",
        "FeaturesDict",
        "Tensor",
        "Scalar",
        "Text",
        "Sequence",
    ),
    *("BBoxFeature", "BBox", "Audio", "Video", "Dataset", "Optional", "Translation"),
    "TranslationVariableLanguages",
)
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
FORMAT = "array_record"
MAX_SHARDS, MAX_CLASSES, MAX_FEATURES, MAX_SIDE = 100_000, 100_000, 10_000, 2**16
MAX_RECORDS = 2**40
MAX_TEMPLATE = 1000  # letters
MAX_LABELS = 2**24  # bytes of the names of classes


# What a value of another kind raises, such as an infinite number of records.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class Feature(NamedTuple):
    """One feature of an example, such as its image."""

    kind: str
    content: Mapping[str, Any]


class Prepared(NamedTuple):
    """A data set in a folder: its features by name, and the files of each split."""

    folder: Path
    name: str
    features: Mapping[str, Feature]
    splits: Mapping[str, list[Shard]]


def default_folder() -> Path:
    """Where TensorFlow Datasets prepares data by default."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


def find_folder(name: str, root: Path) -> Path | None:
    """Find the folder of the data set `name`, of its newest version; None if it is not there.

    Raises UserError for a name that is not one of a data set on this machine, and if the data set
    has several configurations of which `name` gives none.
    """
    parts = NAME.fullmatch(name)
    if parts is None:
        raise UserError(
            f"--data.name {name} cannot be opened: a data set of TensorFlow Datasets is called "
            "NAME, NAME/CONFIG or NAME/CONFIG:VERSION, and nothing is fetched from the network"
        )
    folder = root / parts["name"] / (parts["config"] or "")
    if parts["config"] is None and not _list_versions(folder):
        folder = _choose_config(folder)
    if parts["version"] is not None:
        folder = folder / parts["version"]
        return folder if (folder / INFO).exists() else None
    versions = _list_versions(folder)
    return folder / max(versions, key=_sort_key) if versions else None


def _list_versions(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if VERSION.fullmatch(name) and (folder / name / INFO).exists()]


def _sort_key(version: str) -> list[int]:
    return [int(number[:9]) for number in version.split(".")]


def _choose_config(folder: Path) -> Path:
    """The folder of the only configuration in `folder`, or of the one that is its default."""
    if not folder.is_dir():
        return folder
    found = sorted(path.name for path in folder.iterdir() if _list_versions(path))
    about = folder / ".config" / "metadata.json"
    if len(found) > 1 and about.is_file():
        default = read_json(about, "the description of configurations")
        default = default.get("default_config_name") if isinstance(default, dict) else None
        found = [default] if default in found else found
    if len(found) > 1:
        raise UserError(
            f"{folder.name} has several configurations: choose one with --data.name "
            f"{folder.name}/{found[0]}, or another of {', '.join(found[:10])}"
        )
    return folder / found[0] if found else folder


def read_prepared(folder: Path) -> Prepared:
    """Read what a data set's JSON files say about its features and files.

    Raises UserError for files that are damaged, or name what does not belong in such a folder.
    """
    info = _read_object(folder, INFO, "the description of a prepared data set")
    features = _read_object(folder, FEATURES, "the features of a prepared data set")
    try:
        kinds = parse_features(features)
        _require_random_access(info)
        name = _require_plain_name(info["name"])
        splits = {
            split["name"]: list(_list_shards(folder, name, split))
            for split in info.get("splits", ())
        }
    except UserError as error:
        raise UserError(f"{folder} cannot be read: {error}") from error
    except (*MALFORMED, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else explain(error)
        raise UserError(f"{folder} is not a prepared data set: {what}") from error
    return Prepared(folder, name, kinds, splits)


def _read_object(folder: Path, name: str, what: str) -> dict[str, Any]:
    try:
        path = follow_inside(folder / name, folder)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {name}: prepare the data set again") from error
    except OSError as error:
        raise UserError(f"{folder / name} cannot be read: {explain(error)}") from error
    values = read_json(path, what)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not {what}: it must hold a JSON object")
    return values


def _require_random_access(info: Mapping[str, Any]) -> None:
    """Raise UserError unless the data set is stored as array_record, alone or beside others."""
    if FORMAT not in (info.get("fileFormat"), *info.get("alternativeFileFormats", ())):
        raise UserError(
            f"it holds {info['name']} in a format without random access: prepare it as {FORMAT} in "
            f"another folder with tfds build {info['name']} --file_format={FORMAT} "
            "--data_dir=OTHER_FOLDER"
        )


def parse_features(document: Mapping[str, Any]) -> dict[str, Feature]:
    """Parse the features of an example, by name.

    Raises UserError for a feature, at any depth, that is none of TensorFlow Datasets' own.
    """
    for kind in _list_kinds(document):
        module, _, name = kind.rpartition(".")
        if module.split(".")[0] != "tensorflow_datasets" or name not in KINDS:
            raise UserError(f"it has a feature of the class {kind}, which is not known here")
    top = _parse_feature(document)
    inner = top.content.get("features", top.content)
    if top.kind != "FeaturesDict" or len(inner) > MAX_FEATURES:
        raise UserError(f"its features are a {top.kind}, but they must be a FeaturesDict")
    return {str(name): _parse_feature(feature) for name, feature in inner.items()}


def _parse_feature(document: Mapping[str, Any]) -> Feature:
    """Parse one feature, as it is written today or was before 2022."""
    if "type" in document:
        return Feature(str(document["type"]).rpartition(".")[2], document.get("content") or {})
    kind = str(document["pythonClassName"]).rpartition(".")[2]
    found = [document[name] for name in ("featuresDict", "image", "classLabel") if name in document]
    return Feature(kind, dict(found[0]) if found else {})


def _list_kinds(document: Any) -> Iterator[str]:
    """List the names of classes in a JSON document, at any depth."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            keys = ["pythonClassName"] + ["type"] * ("content" in value)
            yield from (str(value[key]) for key in keys if key in value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _list_shards(folder: Path, name: str, split: Mapping[str, Any]) -> Iterator[Shard]:
    """List the files of a split and the numbers of records in them."""
    lengths = [int(length) for length in split.get("shardLengths", ())]
    if len(lengths) > MAX_SHARDS or any(not 0 <= n < MAX_RECORDS for n in lengths):
        raise UserError(f"its split {split['name']!r} has impossible numbers of records")
    values = {"DATASET": name, "SPLIT": _require_plain_name(split["name"]), "FILEFORMAT": FORMAT}
    for i, length in enumerate(lengths):
        file = fill_template(split.get("filepathTemplate") or TEMPLATE, values, i, len(lengths))
        yield Shard(folder / file, length)


def fill_template(template: str, values: Mapping[str, str], shard: int, count: int) -> str:
    """Fill in the name of a file. Raises UserError unless it is the name of a file in the folder.

    Only {DATASET}, {SPLIT}, {FILEFORMAT}, {SHARD_INDEX}, {NUM_SHARDS} and {SHARD_X_OF_Y} are known.
    """
    digits = max(5, len(str(count)))
    index, number = f"{shard:0{digits}}", f"{count:0{digits}}"
    known = {**values, "SHARD_INDEX": index, "NUM_SHARDS": number}
    known["SHARD_X_OF_Y"] = f"{index}-of-{number}"

    def fill(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise UserError(f"its files are called {template!r}, which is not a known pattern")
        return known[match[1]]

    if len(template) > MAX_TEMPLATE:  # looking for a bracket that is never closed takes long
        raise UserError(f"its files are called {template[:50]!r}..., which is far too long")
    return _require_plain_name(re.sub(r"\{(.*?)\}", fill, template))


def _require_plain_name(name: Any) -> str:
    """Return `name`. Raises UserError unless it is the name of a file without folders."""
    plain = isinstance(name, str) and 0 < len(name) < 256 and name not in (".", "..")
    if not plain or re.search(r"[/\\\0:]", name):
        raise UserError(f"it names the file {name!r}, which is not in its folder")
    return str(name)


def read_shape(image: Feature) -> tuple[int | None, int | None, int]:
    """Read (height, width, channels) of an image feature; None where pictures differ.

    Raises UserError unless it holds 8-bit pictures with 1, 3 or 4 channels, as PNG or JPEG.
    """
    content = image.content
    if content.get("dtype", "uint8") != "uint8":
        raise UserError(f"its images are {content['dtype']}, but they must be uint8")
    encoding = content.get("encodingFormat") or content.get("encoding_format") or "png"
    if encoding not in ("png", "jpeg"):
        raise UserError(f"its images are stored as {encoding!r}, but only as png or jpeg are read")
    shape = content.get("shape") or [-1, -1, 3]
    shape = shape.get("dimensions", ()) if isinstance(shape, dict) else shape
    sizes = [None if n in (None, -1, "-1") else int(n) for n in shape]
    if len(sizes) != 3 or sizes[2] not in (1, 3, 4):
        raise UserError(f"its images have the shape {shape}, which no picture has")
    if any(n is not None and not 1 <= n <= MAX_SIDE for n in sizes):
        raise UserError(f"its images have the impossible shape {shape}")
    height, width, channels = sizes
    return height, width, channels or 3


def read_classes(prepared: Prepared, label: str) -> tuple[str, ...]:
    """The names of the classes of the feature `label`; their numbers if no file names them."""
    content = prepared.features[label].content
    count = int(content.get("numClasses") or content.get("num_classes") or 0)
    path = prepared.folder / f"{label}.labels.txt"
    if path.exists():
        text = read_bounded(path, MAX_LABELS, inside=prepared.folder).decode()
        names = tuple(line.strip() for line in text.split("\n") if line.strip())
        if count not in (0, len(names)):
            raise UserError(f"{path} has {len(names)} names for {count} classes")
        return names
    if not 0 <= count <= MAX_CLASSES:
        raise UserError(f"{prepared.folder} has {count} classes: at most {MAX_CLASSES:,} are read")
    return tuple(map(str, range(count)))
