"""Read many files in parallel."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 4096
T = TypeVar("T")
R = TypeVar("R")


def map_in_parallel(function: Callable[[T], R], values: Sequence[T]) -> Iterator[R]:
    """Yield `function(value)` for each value, in order, computed by threads on all cores.

    Shows a progress bar if that takes more than two seconds.
    """
    from tqdm.auto import tqdm

    bar = tqdm(
        total=len(values),
        desc="Reading the pictures",
        unit="img",
        delay=2,
        leave=False,
        disable=None,
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        for first in range(0, len(values), AT_ONCE):  # a million tasks at once would fill memory
            for result in pool.map(function, values[first : first + AT_ONCE]):
                bar.update()
                yield result
