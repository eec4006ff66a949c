"""Read one feature of a record that TensorFlow has written, without TensorFlow.

A record is a `tf.train.Example` in Protocol Buffers encoding: a map from names to lists of bytes,
floats or integers. Source: TensorFlow's example.proto and feature.proto.
"""

from collections.abc import Iterator

BYTES_LIST, INT64_LIST = 1, 3
Value = int | memoryview


def read_bytes(example: bytes, name: str) -> bytes:
    """The one value of the feature `name`, which holds bytes. Raises ValueError for another."""
    values = list(_read_list(example, name, BYTES_LIST))
    if len(values) != 1 or isinstance(values[0], int):
        raise ValueError(f"{name} is not one value of bytes")
    return bytes(values[0])


def read_integer(example: bytes, name: str) -> int:
    """The one value of the feature `name`, an integer. Raises ValueError for another."""
    values: list[int] = []
    for value in _read_list(example, name, INT64_LIST):
        values += [value] if isinstance(value, int) else _unpack(value)
    if len(values) != 1:
        raise ValueError(f"{name} is not one integer")
    return values[0] - 2**64 if values[0] >= 2**63 else values[0]


def _read_list(example: bytes, name: str, kind: int) -> Iterator[Value]:
    """Read the values in the list of the feature `name`."""
    for features in _select(memoryview(example), 1):
        for entry in _select(features, 1):
            if [bytes(key) for key in _select(entry, 1)] != [name.encode()]:
                continue
            for feature in _select(entry, 2):
                for values in _select(feature, kind):
                    yield from (value for number, value in _read_fields(values) if number == 1)


def _select(message: memoryview, number: int) -> Iterator[memoryview]:
    """The fields of a message with this number that hold bytes."""
    for found, value in _read_fields(message):
        if found == number and not isinstance(value, int):
            yield value


def _read_fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Read the number and the value of each field. Raises ValueError for a damaged message."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                value, at = _read_varint(message, at)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _read_varint(message, at)
            case 5:
                size = 4
            case other:
                raise ValueError(f"a record has a field of the unknown kind {other}")
        if at + size > len(message):
            raise ValueError("a record ends too early")
        yield tag >> 3, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read an integer in groups of seven bits, lowest first; return the position after it too."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("a record ends too early")
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a record has an integer of more than 64 bits")


def _unpack(values: memoryview) -> list[int]:
    """Read integers that follow each other; two are enough to know that there is not one."""
    found: list[int] = []
    at = 0
    while at < len(values) and len(found) < 2:
        value, at = _read_varint(values, at)
        found.append(value)
    return found
