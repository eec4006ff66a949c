"""JSON documents that are nearly valid, for the fuzz tests."""

import json

from hypothesis import strategies as st

from tests.shared.mutations import INTERESTING

NUMBERS = st.sampled_from(
    [*INTERESTING, -1, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]
)
WORDS = [
    "../../outside",
    "/etc",
    "a\0b",
    "\x1b[2J",
    "karras",
    "adamw",
    "x" * 5000,
    "999,1",
    "ddim9",
]
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(WORDS))
SCALARS = st.one_of(NUMBERS, st.none(), st.booleans(), TEXTS)


def nest(inner):
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)


VALUES = st.recursive(SCALARS, nest, max_leaves=6)


def list_paths(value, path=()):
    """List the path of every value in a JSON document."""
    yield path
    items = {dict: dict.items, list: enumerate}.get(type(value), lambda value: ())
    for key, inner in items(value):
        yield from list_paths(inner, (*path, key))


@st.composite
def documents(draw, valid, changes=3):
    """`valid`, with values replaced, removed, or added where none belong."""
    document = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(0, changes))):
        path = draw(st.sampled_from(list(list_paths(document))))
        if not path:
            return draw(VALUES)
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "delete", "add"])):
            case "replace":
                holder[path[-1]] = draw(VALUES)
            case "delete":
                del holder[path[-1]]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["new", "ema_warmup", "architecture", ""]))] = draw(
                    VALUES
                )
    return document


def to_json(document):
    return json.dumps(document).encode()
