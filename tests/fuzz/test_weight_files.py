"""Untrusted weights: .safetensors, .pt and .npz files, and the state dicts in them."""

import functools
import io
import json
import os
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jax_ddpm.interop.network
from jax_ddpm.errors import UserError
from jax_ddpm.interop import from_torch, to_torch
from jax_ddpm.interop.files import read_weights, write_weights
from jax_ddpm.interop.network import PEERS, Network
from jax_ddpm.models import parameter_shapes
from jax_ddpm.models.pulfer import PulferConfig
from jax_ddpm.models.unet import UNetConfig
from tests.shared.mutations import INTERESTING, read_or_refuse, valid_or_damaged

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
NETWORKS = {
    "torch_ref": UNetConfig(
        channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attn_levels=(0,),
        in_channels=1,
        out_channels=1,
    ),
    "pulfer": PulferConfig(n_steps=5, time_emb_dim=3),
}


def draw_weights(source):
    """Draw weights of a network, under its implementation's names."""
    config = NETWORKS[source]
    params = jax.tree.map(
        lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), parameter_shapes(config)
    )
    return to_torch(Network(source, config, params, lambda *given: None))


@pytest.fixture(scope="module", autouse=True)
def shapes_once():
    """Compute each network's shapes once: it takes a second, and most examples share a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            jax_ddpm.interop.network, "parameter_shapes", functools.cache(parameter_shapes)
        )
        yield


WEIGHTS = {source: draw_weights(source) for source in NETWORKS}
DTYPES = ["F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "NO", ""]
NAMES = ["a.weight", "b.bias", "", "__metadata__", "a" * 300, "\x1b[2J", "é"]
SIZES = st.one_of(st.integers(0, 4), st.sampled_from(INTERESTING))


@st.composite
def safetensors_files(draw):
    """Arbitrary headers for 64 bytes of data."""
    header = {}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        shape = draw(st.lists(SIZES, max_size=3))
        offsets = draw(
            st.sampled_from([[0, 64], [0, 16], [16, 64], [64, 0], [0, 2**63], [-1, 4], []])
        )
        header[name] = {
            "dtype": draw(st.sampled_from(DTYPES)),
            "shape": shape,
            "data_offsets": offsets,
        }
    if draw(st.booleans()):
        header = {"a.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}
    text = json.dumps(header).encode()
    length = draw(st.sampled_from([len(text), len(text), len(text) + 8, 2**40, 2**64 - 1]))
    return struct.pack("<Q", length) + text + bytes(64)


def check_arrays(found):
    for value in (found or {}).values():
        if isinstance(value, dict):
            check_arrays(value)
        else:
            assert isinstance(value, np.ndarray)
            assert value.nbytes <= 2**26
            np.array(value)  # copies all the bytes that it announces


@given(raw=valid_or_damaged(safetensors_files()))
def test_safetensors_files_are_read_or_refused(scratch, raw):
    path = scratch / "any.safetensors"
    path.write_bytes(raw)
    check_arrays(read_or_refuse(lambda: read_weights(path)))


def make_circle():
    inside = {"a.weight": torch.zeros(2)}
    inside["model"] = inside
    return inside


def make_billion_laughs():
    """Make a mapping of 2^40 tensors, if every reference to a mapping is followed."""
    value = {"a": torch.zeros(1)}
    for _ in range(40):
        value = {"a": value, "b": value}
    return value


def make_deep():
    value = {"a": torch.zeros(1)}
    for _ in range(200):
        value = {"model": value}
    return value


TWO = torch.ones(2)
TENSORS = [
    TWO,
    TWO.to(torch.bfloat16),
    TWO.to(torch.complex64),
    TWO.to(torch.complex64).conj(),
    TWO.to(torch.bool),
    TWO.to(torch.float8_e4m3fn),
    TWO.clone().requires_grad_(),
    torch.nn.Parameter(TWO),
    torch.quantize_per_tensor(TWO, 0.1, 0, torch.qint8),
    torch.full((2,), float("nan")),
    torch.zeros(()),
    torch.zeros(0),
    torch.ones(3, 4).T,
    torch.eye(2).to_sparse(),
    torch.ones(1).expand(2**40),
    torch.ones(4).as_strided((2**20, 2**20), (0, 0)),
    torch.empty(2**40, device="meta"),
]
OTHERS = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
)
LEAVES = st.one_of(st.sampled_from(TENSORS), OTHERS)
KEYS = st.one_of(
    st.sampled_from(["model", "ema", "state_dict", "a.weight", "", "step"]), st.integers()
)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=8)


class Evil:
    """Runs code if a pickle is read carelessly."""

    def __reduce__(self):
        return (exec, ("import os; os.environ['FUZZ_CODE_RAN'] = 'yes'",))


@st.composite
def torch_files(draw):
    """Anything that PyTorch can save, in its newer or older format."""
    made = st.sampled_from(
        [
            make_circle,
            make_billion_laughs,
            make_deep,
            lambda: {"a": Evil()},
            lambda: [torch.ones(1)],
        ]
    )
    value = draw(st.one_of(TREES, TREES, TREES, made.map(lambda make: make())))
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=draw(st.booleans()))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # PyTorch warns about sparse tensors and old formats
@given(raw=valid_or_damaged(torch_files()))
def test_torch_files_are_read_or_refused(scratch, raw):
    path = scratch / "any.pt"
    path.write_bytes(raw)
    check_arrays(read_or_refuse(lambda: read_weights(path)))
    assert "FUZZ_CODE_RAN" not in os.environ


@st.composite
def state_dicts(draw, source):
    """A network's weights with up to three wrong names, shapes or types."""
    weights = dict(WEIGHTS[source])
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(weights)))
        match draw(st.sampled_from(["drop", "name", "shape", "type", "nan", "value", "twin"])):
            case "drop":
                del weights[name]
            case "name":
                changed = draw(
                    st.sampled_from([f"x.{name}", name[1:], name.replace("0", "7"), "weight"])
                )
                weights[changed] = weights.pop(name)
            case "shape":
                array = np.asarray(weights[name])
                shape = draw(st.lists(st.integers(0, 5), max_size=5))
                weights[name] = draw(
                    st.sampled_from([array.T, array[None], array.reshape(-1), np.zeros(shape)])
                )
            case "type":
                kind = draw(
                    st.sampled_from([np.float16, np.int8, ml_dtypes.bfloat16, np.bool_, "U3", "V2"])
                )
                with np.errstate(all="ignore"):
                    weights[name] = np.zeros(np.shape(weights[name]), kind)
            case "nan":
                weights[name] = np.full(np.shape(weights[name]), np.nan, np.float32)
            case "value":
                weights[name] = draw(
                    st.sampled_from([None, 3, "text", [1, 2], {}, {"a": {}}, np.float32(1)])
                )
            case "twin":
                weights[f"module.{name}"] = weights[name]
    wrap = draw(st.sampled_from(["", "", "module.", "ema_model.", "model.module."]))
    weights = {wrap + name: value for name, value in weights.items()}
    for outer in draw(
        st.lists(st.sampled_from(["model", "ema", "state_dict", "other"]), max_size=2)
    ):
        weights = {outer: weights, "step": 3}
    return weights


SIZES_OF = {"channels", "channel_mult", "dim", "dim_mults"}
ARGUMENTS = sorted(SIZES_OF | {"n_steps", "num_groups", "dropout", "attn_levels"})
NUMBERS = [0, -1, 2, 4, 1.5, 2**40, float("nan"), True]
VALUES = st.sampled_from([*NUMBERS, "", "x", None, [], [0], [1, 2], {}, [[1]]])


@pytest.mark.parametrize("source", NETWORKS)
@given(data=st.data())
def test_state_dicts_are_read_or_refused(source, data):
    weights = data.draw(state_dicts(source))
    given_arguments = st.none() | st.dictionaries(st.sampled_from(ARGUMENTS), VALUES, max_size=2)
    arguments = data.draw(given_arguments)
    asked = data.draw(st.sampled_from([source] * 4 + sorted(PEERS)))
    network = read_or_refuse(lambda: from_torch(weights, asked, arguments))
    if network is not None:
        kept = to_torch(network)
        assert kept.keys() == to_torch(from_torch(WEIGHTS[source], source)).keys()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
@given(data=st.data())
def test_damaged_weights_are_refused_or_fit_the_network(scratch, suffix, data):
    source = data.draw(st.sampled_from(sorted(NETWORKS)))
    path = scratch / f"whole {source}{suffix}"
    if not path.exists():
        write_weights(path, WEIGHTS[source])
    spoiled = scratch / f"spoilt{suffix}"
    spoiled.write_bytes(data.draw(valid_or_damaged(st.just(path.read_bytes()))))
    found = read_or_refuse(lambda: read_weights(spoiled))
    if found is not None:
        network = read_or_refuse(lambda: from_torch(found, source))
        assert network is None or to_torch(network).keys() == WEIGHTS[source].keys()


def test_the_weights_are_valid_before_they_are_damaged():
    for source, weights in WEIGHTS.items():
        assert from_torch(weights, source).config == NETWORKS[source]
    with pytest.raises(UserError):
        from_torch(WEIGHTS["pulfer"], "torch_ref")


@pytest.mark.parametrize("kind", ["U3", "V2", "M8[s]", "c16"])
def test_weights_that_are_not_numbers_are_refused_by_name(kind):
    weights = dict(WEIGHTS["torch_ref"])
    weights["conv_in.bias"] = np.zeros(32, kind)
    with pytest.raises(UserError, match=r"weight conv_in.bias has type .* must be real numbers"):
        from_torch(weights, "torch_ref")
