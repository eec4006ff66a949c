"""Tests with many cases, a few of which stand in for all when time is short."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mark_others_long(cases: Iterable[Any], keep: Collection[Any]) -> list[Any]:
    """`cases`, with those that are not in `keep` marked long: pytest -m long runs them."""
    return [case if case in keep else pytest.param(case, marks=pytest.mark.long) for case in cases]
