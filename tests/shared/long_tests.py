"""Tests of many cases, of which some stand for all where time is short."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def others_long(cases: Iterable[Any], keep: Collection[Any]) -> list[Any]:
    """`cases`, of which those not in `keep` are marked long: pytest -m long runs them."""
    return [case if case in keep else pytest.param(case, marks=pytest.mark.long) for case in cases]
