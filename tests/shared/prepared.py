"""Write folders as TensorFlow Datasets prepares them, honest or not, without its code."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jax_ddpm.data.tfds_folder import FEATURES, INFO

CORE = "tensorflow_datasets.core.features"
VARINT, BYTES = 0, 2  # wire types of Protocol Buffers
NAME = "strange"


def describe_features(
    shape: Sequence[int] = (8, 8, 3), num_classes: int = 3, **others: Any
) -> dict[str, Any]:
    """The features of pictures with a class label; `others` adds or replaces features."""
    image = {"dtype": "uint8", "encodingFormat": "png"}
    image["shape"] = {"dimensions": [str(n) for n in shape]}
    features = {
        "image": {"pythonClassName": f"{CORE}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{CORE}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(num_classes)},
        },
    }
    return {
        "pythonClassName": f"{CORE}.features_dict.FeaturesDict",
        "featuresDict": {"features": features | others},
    }


def describe_data(count: int = 3, **changes: Any) -> dict[str, Any]:
    """What dataset_info.json says of `count` examples in one file; `changes` are those of split."""
    split = {"name": "train", "shardLengths": [str(count)]} | changes
    return {"name": NAME, "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}


def encode_picture(picture: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, kind)
    return buffer.getvalue()


def encode_example(image: bytes, label: int, **others: bytes) -> bytes:
    """Encode a record as TensorFlow does."""
    features = {name: encode_bytes(1, encode_bytes(1, value)) for name, value in others.items()}
    features["image"] = encode_bytes(1, encode_bytes(1, image))
    features["label"] = encode_bytes(3, encode_bytes(1, encode_int(0, label)[1:]))
    entries = (
        encode_bytes(1, encode_bytes(1, name.encode()) + encode_bytes(2, feature))
        for name, feature in features.items()
    )
    return encode_bytes(1, b"".join(entries))


def make_examples(count: int = 3, side: int = 8) -> list[bytes]:
    """Encode noise with the labels 0, 1 and 2 in turn."""
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return [encode_example(encode_picture(noise[i]), i % 3) for i in range(count)]


def write_records(path: Path, records: Sequence[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_folder(
    root: Path,
    records: Sequence[bytes] | None = None,
    features: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Write the data set `strange` in `root`; return its own folder."""
    folder = root / NAME / "1.0.0"
    folder.mkdir(parents=True)
    records = make_examples() if records is None else records
    write_records(folder / f"{NAME}-train.array_record-00000-of-00001", records)
    (folder / FEATURES).write_text(json.dumps(features or describe_features()))
    (folder / INFO).write_text(json.dumps(info or describe_data(len(records))))
    return folder


def encode_int(field: int, value: int) -> bytes:
    """Encode field number `field` with the integer `value`, 0 or more, as Protocol Buffers do."""
    return encode_varint(field << 3 | VARINT) + encode_varint(value)


def encode_bytes(field: int, value: bytes) -> bytes:
    """Encode field number `field` with text, raw bytes or an encoded message."""
    return encode_varint(field << 3 | BYTES) + encode_varint(len(value)) + value


def encode_varint(value: int) -> bytes:
    """Encode an integer, 0 or more, in groups of seven bits, lowest first."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
