"""Parts of an ONNX network, cut from its file: what lies between values that the caller names.

ONNX files are protocol buffers (onnx.proto3); a few fields of them are read here, so that no package is needed for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Numbers of fields: the graph of a model, and what a graph, a node, a named value and a type hold.
_GRAPH = 7
_NODE, _CONSTANT, _GRAPH_INPUT, _GRAPH_OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_KIND, _CONSTANT_NAME = 1, 2, 4, 8
_FLOAT = 1
_BYTES = 2  # wire type of strings and messages


@dataclass(frozen=True)
class OnnxNode:
    """An operation: its kind, and the names of the values that it reads and makes. raw: its field in the file."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    raw: bytes


def nodes_of(model: bytes) -> list[OnnxNode]:
    """The operations of a network, in the order of its file."""
    return [_node(value, raw) for field, value, raw in _fields(_graph(model)) if field == _NODE]


def part_of(model: bytes, inputs: Mapping[str, Sequence[int | None]], output: str) -> bytes:
    """The network that computes the value `output` from `inputs`: {name: shape}, float32, None for an open dimension.

    Raises KeyError where `output` needs a value that is neither among them nor computed.
    """
    made_by = {name: node for node in nodes_of(model) for name in node.outputs}
    graph = list(_fields(_graph(model)))
    constants = {_text(value, _CONSTANT_NAME): raw for field, value, raw in graph if field == _CONSTANT}
    wanted, seen, kept = [output], set(inputs) | {""}, set[bytes]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in constants:
            kept.add(constants[name])
        else:
            kept.add(made_by[name].raw)
            wanted += made_by[name].inputs
    chosen, dropped = (_NODE, _CONSTANT), (_GRAPH_INPUT, _GRAPH_OUTPUT, _VALUE_INFO)
    body = b"".join(raw for field, _, raw in graph if (raw in kept if field in chosen else field not in dropped))
    body += b"".join(_field(_GRAPH_INPUT, _value(name, shape)) for name, shape in inputs.items())
    body += _field(_GRAPH_OUTPUT, _value(output, None))
    return b"".join(_field(_GRAPH, body) if field == _GRAPH else raw for field, _, raw in _fields(model))


def _graph(model: bytes) -> bytes:
    return next(value for field, value, _ in _fields(model) if field == _GRAPH)


def _node(message: bytes, raw: bytes) -> OnnxNode:
    parts = list(_fields(message))
    inputs, outputs = (
        tuple(value.decode() for field, value, _ in parts if field == which) for which in (_NODE_INPUT, _NODE_OUTPUT)
    )
    return OnnxNode(_text(message, _NODE_KIND), inputs, outputs, raw)


def _text(message: bytes, wanted: int) -> str:
    """A field of text; "" where there is none."""
    found = [value for field, value, _ in _fields(message) if field == wanted]
    return found[0].decode() if found else ""


def _value(name: str, shape: Sequence[int | None] | None) -> bytes:
    """A named float32 value; without a shape, where the network gives it one."""
    tensor = _number(1, _FLOAT)
    if shape is not None:
        tensor += _field(2, b"".join(_field(1, b"" if size is None else _number(1, size)) for size in shape))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, content, whole field) of each field of a message; the content of a number is its bytes."""
    at = 0
    while at < len(message):
        first = at
        key, at = _varint(message, at)
        begin = at
        if key & 7 == _BYTES:
            size, begin = _varint(message, at)
            at = begin + size
        elif key & 7 == 0:
            _, at = _varint(message, at)
        else:
            at += {1: 8, 5: 4}[key & 7]
        yield key >> 3, message[begin:at], message[first:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _packed(value: int) -> bytes:
    low = bytearray()
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _number(field: int, value: int) -> bytes:
    return _packed(field << 3) + _packed(value)


def _field(field: int, content: bytes) -> bytes:
    return _packed(field << 3 | _BYTES) + _packed(len(content)) + content
