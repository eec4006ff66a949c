"""Untrusted data sets prepared by TensorFlow Datasets, and statistics of features."""

import io
import json
import shutil

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jax_ddpm.data import tf_example
from jax_ddpm.data.array_record import read_decoded_sizes
from jax_ddpm.data.sources import open_source
from jax_ddpm.data.tfds_folder import FEATURES, INFO
from jax_ddpm.files.statistics import read_statistics
from tests.shared.documents import documents, to_json
from tests.shared.mutations import corruptions, read_or_refuse, valid_or_damaged
from tests.shared.prepared import (
    NAME,
    describe_data,
    describe_features,
    make_examples,
    write_folder,
)

EXAMPLE = make_examples(1)[0]


def open_strange(root):
    """Open the data set in `root`; each image that can be read has the right form."""
    source = read_or_refuse(lambda: open_source(NAME, root, image_size=8))
    if source is not None:
        for i in range(min(3, len(source.images))):
            image = read_or_refuse(lambda i=i: source.images[i])
            assert image is None or (image.shape[:2], image.dtype) == ((8, 8), np.uint8)


def describe(valid):
    return st.one_of(documents(valid).map(to_json), valid_or_damaged(st.just(to_json(valid))))


@given(
    info=st.just(to_json(describe_data())) | describe(describe_data()),
    features=st.just(to_json(describe_features())) | describe(describe_features()),
)
def test_descriptions_of_prepared_data_are_read_or_refused(scratch, info, features):
    root = scratch / "described"
    if not root.exists():
        write_folder(root)
    (root / NAME / "1.0.0" / INFO).write_bytes(info)
    (root / NAME / "1.0.0" / FEATURES).write_bytes(features)
    before = sorted(root.rglob("*"))
    open_strange(root)
    assert sorted(root.rglob("*")) == before


@given(data=st.data())
def test_files_of_records_are_read_or_refused(scratch, data):
    root = scratch / "records"
    shutil.rmtree(root, ignore_errors=True)
    path = write_folder(root) / f"{NAME}-train.array_record-00000-of-00001"
    raw = path.read_bytes()
    used = len(raw.rstrip(b"\0"))  # files are padded to blocks
    path.write_bytes(data.draw(corruptions(raw[:used])) + raw[used:])
    assert len(list(read_decoded_sizes(path))) < 100
    open_strange(root)


@given(record=valid_or_damaged(st.just(EXAMPLE)))
def test_records_are_read_or_refused(scratch, record):
    root = scratch / "one"
    shutil.rmtree(root, ignore_errors=True)
    write_folder(root, [record])
    open_strange(root)
    for read in (tf_example.read_bytes, tf_example.read_integer):
        try:
            read(record, "label")
        except ValueError as error:
            assert str(error)


def make_statistics(mean=(0.0, 1.0), covariance=((1.0, 0.5), (0.5, 2.0))):
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.array(mean), sigma=np.array(covariance))
    return buffer.getvalue()


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 1e300, -1.0])


@given(
    raw=valid_or_damaged(
        st.just(make_statistics())
        | st.lists(NUMBERS, max_size=3).map(make_statistics)
        | st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=2, max_size=2).map(
            lambda rows: make_statistics(covariance=rows)
        )
    )
)
def test_statistics_are_read_or_refused(scratch, raw):
    path = scratch / "any.npz"
    path.write_bytes(raw)
    found = read_or_refuse(lambda: read_statistics(path))
    if found is not None:
        assert found.covariance.shape == (len(found.mean), len(found.mean))
        assert np.isfinite(found.mean).all() and np.isfinite(found.covariance).all()


def test_the_descriptions_are_valid_before_they_are_damaged(tmp_path):
    write_folder(tmp_path)
    assert json.loads(to_json(describe_data())) == describe_data()
    assert len(open_source(NAME, tmp_path).images) == 3
