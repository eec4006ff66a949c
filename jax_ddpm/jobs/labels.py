"""The classes of a run by name and number, and which of them are drawn."""

from collections.abc import Sequence

from jax_ddpm import runs
from jax_ddpm.data.summary import name_class
from jax_ddpm.errors import UserError, check_choice, require
from jax_ddpm.jobs.build import count_classes


def list_class_names(run: runs.Run) -> tuple[str, ...]:
    """The name of each class of a run's images; () if they are not known, or it has no classes."""
    if run.images is None or run.config.model.num_labels is None:
        return ()
    return run.images.summary.class_names


def find_labels(given: Sequence[str | int], run: runs.Run) -> tuple[int, ...]:
    """The numbers of the classes that the user names, or gives as numbers.

    A name counts before a number: with classes called 1, 10 and 2, "2" is the last one. Raises
    UserError for a class that the run does not have, and for one without images to learn from.
    """
    num_labels = count_classes(run.config)
    if given and num_labels is None:
        raise UserError(f"--label {given[0]}: this run was trained without labels")
    return tuple(find_label(label, run, num_labels or 0) for label in given)


def find_label(given: str | int, run: runs.Run, num_labels: int) -> int:
    """The number of one class."""
    names = list_class_names(run)
    if str(given) in names and not isinstance(given, int):
        number = names.index(str(given))
    elif is_number(given):
        number = int(given)
        require(0 <= number < num_labels, "--label", given, f"between 0 and {num_labels - 1}")
    elif names:
        number = names.index(check_choice("--label", given, [name for name in names if name]))
    else:
        raise UserError(
            f"--label {given}: the names of this run's classes are not known, so give a number "
            f"from 0 to {num_labels - 1}"
        )
    if number in list_empty_classes(run, num_labels):
        raise UserError(
            f"--label {given}: the data had no image of class {describe_class(names, number)}, so "
            "the network cannot draw it"
        )
    return number


def is_number(given: str | int) -> bool:
    """Whether a label is a whole number."""
    return isinstance(given, int) or given.removeprefix("-").isdecimal()


def list_empty_classes(run: runs.Run, num_labels: int) -> list[int]:
    """The classes that the network has but the data did not; [] if that is not known."""
    counts = () if run.images is None else run.images.summary.class_counts
    if not counts:
        return []
    return [i for i in range(num_labels) if i >= len(counts) or counts[i] == 0]


def describe_class(names: Sequence[str], number: int) -> str:
    """A class as "dog (number 2)", or its number alone if it has no name."""
    name = name_class(tuple(names), number)
    return f"{name} (number {number})" if name else str(number)


def describe_drawn(labels: Sequence[int], run: runs.Run) -> str:
    """Say which classes are drawn, and which of them the data lacked; "" without classes."""
    num_labels, names = count_classes(run.config), list_class_names(run)
    if labels:
        return f", of class {', '.join(describe_class(names, label) for label in labels)}"
    empty = [] if num_labels is None else list_empty_classes(run, num_labels)
    if not empty:
        return ""
    listed = ", ".join(describe_class(names, number) for number in empty[:10])
    more = "" if len(empty) <= 10 else f" and {len(empty) - 10} more"
    return (
        f", of all {num_labels} classes in turn, though the data had no images of class {listed}"
        f"{more}: choose with --label"
    )
