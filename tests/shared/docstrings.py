"""Run the examples in docstrings, whatever they print."""

import doctest
from typing import Any

import jax


def run_examples(documented: Any) -> dict[str, Any]:
    """Run the example in a docstring, as a user would, and return the names that it defines.

    Unlike doctest, it ignores what is printed and compares only the values of expressions.
    """
    examples = doctest.DocTestParser().get_examples(documented.__doc__)
    assert examples, f"{documented} has no example"
    names: dict[str, Any] = {}
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        for example in examples:
            if example.want:
                assert repr(eval(example.source, names)) == example.want.strip(), example.source
            else:
                exec(example.source, names)
    return names
