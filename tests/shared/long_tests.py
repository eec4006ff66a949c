"""Marks for tests with many cases: a few of them stand in for the rest when time is short."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mark_others_long(cases: Iterable[Any], keep: Collection[Any]) -> list[Any]:
    """Mark the cases that are not in `keep` as long; `pytest -m long` runs them."""
    return [case if case in keep else pytest.param(case, marks=pytest.mark.long) for case in cases]
