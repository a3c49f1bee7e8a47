"""What of an ONNX file a refit may not change, read without the onnx package, which devices do not have.

Field numbers after onnx.proto: ModelProto.graph 7, opset_import 8; GraphProto.node 1, initializer 5, input 11, output
12; TensorProto.dims 1, data_type 2, name 8; NodeProto.doc_string 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

FLOATS = {1, 10, 11, 16}  # TensorProto.DataType of weights: FLOAT, FLOAT16, DOUBLE, BFLOAT16
WEIGHT = (1, 2, 8)


class Field(NamedTuple):
    number: int
    value: int
    data: bytes  # of fields that have a length, else empty


def structure(model: bytes) -> str:
    """A digest of the graph without the values of its float weights: two files with the same one are two trainings of
    one network. Constants, attributes and integers count, shapes and names too. Raises ValueError."""
    digest = hashlib.sha256()
    graphs = 0
    for field in fields(model):
        if field.number == 8:
            digest.update(b"opset" + field.data)
        if field.number == 7:
            graphs += 1
            for part in fields(field.data):
                digest.update(_what_stays(part))
    if graphs != 1:
        raise ValueError("not an ONNX model")
    return digest.hexdigest()


def _what_stays(part: Field) -> bytes:
    if part.number == 1:
        kept = [f for f in fields(part.data) if f.number != 6]
    elif part.number == 5:
        kept = fields(part.data)
        if any(f.number == 2 and f.value in FLOATS for f in kept):
            kept = [f for f in kept if f.number in WEIGHT]
    elif part.number in (11, 12):
        kept = fields(part.data)
    else:
        return b""
    return repr((part.number, [tuple(f) for f in kept])).encode()


def fields(message: bytes) -> list[Field]:
    """The fields of a protocol buffer message. Raises ValueError."""
    return list(_fields(message))


def _fields(message: bytes) -> Iterator[Field]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield Field(number, value, b"")
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("not a protocol buffer")
        if number == 0 or at + length > len(message):
            raise ValueError("not a protocol buffer")
        yield Field(number, 0, message[at : at + length])
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("not a protocol buffer")
