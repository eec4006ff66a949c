"""Find the weights of a network in a trainer's file: in containers, behind prefixes, averaged."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.interop.peer import Peer
from jax_ddpm.interop.state_dict import compile_starts
from jax_ddpm.interop.tree import WEIGHTS, Tensors, flatten

MAX_PREFIX = 12  # parts of a name, such as model.module.
# Words in the paths of moving averages, and of what lies beside them in the same container.
AVERAGE_WORDS = {"ema", "emas", "average", "averaged", "averages", "shadow", "polyak", "swa"}
RAW_WORDS = {"online", "collected", "stored"}
OPTIMIZER_WORDS = {"opt", "optim", "optimizer", "optimizers", "optimiser"}
# The errors that impossible shapes and arguments may raise, wherever they are noticed first.
UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)


class Found(NamedTuple):
    """The weights of one network in a file."""

    path: str
    """Where they are: the keys of the containers and the prefix, joined by dots."""
    is_average: bool
    tensors: Tensors
    """Their names without the prefix -> arrays, in the file's order."""

    def describe(self) -> str:
        """Say which weights these are, and where in the file."""
        kind = "the average" if self.is_average else "the weights"
        return f"{kind} at {self.path}" if self.path else kind


def find_network(
    given: Any, peer: Peer, weights: str | None = None, prefix: str | None = None
) -> Found:
    """Find the weights of a network of `peer` in `given`, which nests mappings and lists.

    Each container and each common prefix of names is tried. `weights` chooses between "average"
    and "raw"; None: the average if there is one. `prefix`, such as "ema.model", is part of the
    path of the wanted weights and chooses among several.

    Raises UserError if nothing fits, if several sets of weights do, and for an average that cannot
    be read while the raw weights can, unless `weights` or `prefix` chooses these.
    """
    if weights is not None:
        weights = check_choice("weights", weights, WEIGHTS)
    leaves = flatten(given, peer.buffers)
    if not leaves:
        names = ", ".join(map(str, list(given)[:5])) if isinstance(given, Mapping) else ""
        raise UserError(f"there are no weights among {names or 'nothing'}")
    found = list_candidates(leaves, peer)
    found += pair_averages(leaves, found)
    if not found:
        return guess(leaves, peer, prefix)
    if weights is prefix is None and not any(each.is_average for each in found):
        _require_no_average(leaves, found[0])
    return choose(found, weights, prefix)


def list_candidates(leaves: Tensors, peer: Peer) -> list[Found]:
    """List the sets of tensors that share a prefix and whose names `peer` understands.

    No set contains another one: the longest prefixes are tried first. The order is the file's.
    """
    claimed: set[str] = set()
    found: dict[str, Found] = {}
    groups = group_by_prefix(leaves)
    for prefix in sorted(groups, key=len, reverse=True):
        names = [name for name in groups[prefix] if name not in claimed]
        tensors = {name[len(prefix) :]: leaves[name] for name in names}
        if _fits(tensors, peer):
            claimed.update(names)
            found[prefix] = Found(prefix.rstrip("./"), is_average(prefix), tensors)
    return [found[prefix] for prefix in groups if prefix in found]


def group_by_prefix(leaves: Collection[str]) -> dict[str, list[str]]:
    """Group names by each of their prefixes; the empty one has all names."""
    groups: dict[str, list[str]] = {"": list(leaves)}
    for name in leaves:
        for i, match in enumerate(re.finditer(r"[./]", name)):
            if i == MAX_PREFIX:
                break
            groups.setdefault(name[: match.end()], []).append(name)
    return groups


def _fits(tensors: Tensors, peer: Peer) -> bool:
    try:
        return len(tensors) > 1 and bool(peer.infer({n: a.shape for n, a in tensors.items()}))
    except UNFIT:
        return False


def is_average(path: str) -> bool:
    """Whether the last telling word of `path` means a moving average."""
    words = _split_words(path)
    telling = [word for word in words if word in AVERAGE_WORDS | RAW_WORDS]
    return bool(telling) and telling[-1] in AVERAGE_WORDS and not OPTIMIZER_WORDS & set(words)


def _split_words(path: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", path)]


def pair_averages(leaves: Tensors, found: list[Found]) -> list[Found]:
    """Pair averages that lack the network's names with raw weights of the same shapes.

    torch_ema and diffusers' EMAModel write a list, in the order of the raw weights; latent
    diffusion's LitEma leaves the dots out of the names.
    """
    groups: dict[str, Tensors] = {}
    for name, array in leaves.items():
        path, _, last = name.rpartition(".")
        if is_average(path):
            groups.setdefault(path, {})[last] = array
    pairs = ((path, pair(group, raw.tensors)) for path, group in groups.items() for raw in found)
    paired = {path: tensors for path, tensors in pairs if tensors is not None}
    return [Found(path, True, tensors) for path, tensors in paired.items()]


def pair(average: Tensors, raw: Tensors) -> Tensors | None:
    """Give the arrays of `average` the names of `raw`; None if they do not correspond."""
    if len(average) != len(raw):
        return None
    if all(name.isdecimal() for name in average):
        arrays = list(average.values())
    else:
        dotless = [name.replace(".", "") for name in raw]
        starts = [n.removesuffix(dotless[0]) for n in average if n.endswith(dotless[0])]
        start = next((s for s in starts if average.keys() == {s + name for name in dotless}), None)
        if start is None:
            return None
        arrays = [average[start + name] for name in dotless]
    if [array.shape for array in arrays] != [array.shape for array in raw.values()]:
        return None
    return dict(zip(raw, arrays, strict=True))


def _require_no_average(leaves: Collection[str], raw: Found) -> None:
    """Raise UserError if there is an average, given that it is not of the peer's network."""
    for name in leaves:
        path = next((p for p in _list_paths(name) if is_average(p)), None)
        if path is not None:
            raise UserError(
                f"the average at {path} does not fit the network's names or shapes, but "
                f"{raw.describe()} do: take these with --weights raw"
            )


def holds_average(given: Any) -> bool:
    """Whether there is a moving average in `given`, which nests mappings and lists."""
    return any(_list_paths(name) for name in flatten(given))


def _list_paths(name: str) -> list[str]:
    """List the containers of a tensor, the outermost first, up to the one that tells its kind."""
    ends = [match.start() for match in re.finditer(r"[./]", name)]
    if not ends or not is_average(name[: ends[-1]]):
        return []
    return [name[:end] for end in ends]


def choose(found: list[Found], weights: str | None, prefix: str | None) -> Found:
    """Choose the weights of the wanted kind at `prefix`. Raises UserError unless there is one."""
    if prefix is not None:
        found = _match_prefix(found, prefix)
    kinds = {
        "average": [each for each in found if each.is_average],
        "raw": [each for each in found if not each.is_average],
    }
    weights = weights or ("average" if kinds["average"] else "raw")
    if not kinds[weights]:
        raise UserError(f"there are no {weights} weights, only {_list_where(found)}")
    chosen = _drop_copies(kinds[weights])
    if len(chosen) > 1:
        example = chosen[0].path or chosen[1].path
        raise UserError(
            f"several sets of weights fit the network: {_list_where(chosen)}; choose one, such as "
            f"--prefix {example}"
        )
    return chosen[0]


def _match_prefix(found: list[Found], prefix: str) -> list[Found]:
    """Filter by the whole path, or else by a part of it. Raises UserError if none matches."""
    wanted = prefix.strip("./")
    exact = [each for each in found if each.path == wanted]
    part = [each for each in found if f".{wanted}." in f".{each.path}."]
    if not exact and not part:
        raise UserError(f"no weights of the network are at {prefix}, only {_list_where(found)}")
    return exact or part


def _list_where(found: list[Found]) -> str:
    return ", ".join(f"{each.describe()}{'' if each.path else ' at the top'}" for each in found)


def _drop_copies(found: list[Found]) -> list[Found]:
    """Keep one of several sets with the same names and numbers."""
    kept: list[Found] = []
    for each in found:
        if not any(_are_equal(each.tensors, other.tensors) for other in kept):
            kept.append(each)
    return kept


def _are_equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def guess(leaves: Tensors, peer: Peer, prefix: str | None) -> Found:
    """Find the tensors that come closest to a network of `peer`, for an error that names a tensor.

    Their names start like those of the peer's table most often.
    """
    groups = group_by_prefix(leaves)
    if prefix is not None:
        groups = {key: groups[key] for key in groups if key.rstrip("./") == prefix.strip("./")}
        if not groups:
            raise UserError(f"there are no weights at {prefix}")

    known = compile_starts(peer.names)

    def count_known(start: str) -> tuple[int, int]:
        return sum(bool(known.match(n, len(start))) for n in groups[start]), len(start)

    best = max(groups, key=count_known)
    best = best if count_known(best)[0] or prefix is not None else ""
    tensors = {name[len(best) :]: leaves[name] for name in groups[best]}
    return Found(best.rstrip("./"), is_average(best), tensors)
