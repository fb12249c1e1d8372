"""Changes to safetensors files and to our containers, whose seal is made anew: what lies behind it is reached."""

import copy
import hashlib
import json
import struct
from random import Random
from typing import Any

from benchmarks.fuzz_changes import NAMES, damaged, edited, junk, slots, text_of, word
from fxdistill.modelfiles.graphs import vocabulary


def _parts(whole: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def _joined(header: str, data: bytes) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X1", "U64")


def _tensors(random: Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Types, shapes, places and values of tensors."""
    header = copy.deepcopy(header)
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return header, data
    name, other = random.choice(names), random.choice(names)
    kind = random.randrange(7)
    if kind == 0:
        header[name]["dtype"] = random.choice(_DTYPES)
    elif kind == 1:
        header[name]["shape"] = edited(random, header[name]["shape"] or [1])
    elif kind == 2:
        header[name]["data_offsets"] = edited(random, header[name]["data_offsets"])
    elif kind == 3:
        header[name], header[other] = header[other], header[name]
    elif kind == 4:
        header[random.choice((word(random), other))] = header.pop(name)
    elif kind == 5:
        header[name] = edited(random, header[name])
    else:
        changed = bytearray(data)
        for _ in range(random.choice((1, 4, 64))):
            at = 4 * random.randrange(len(data) // 4 or 1)
            changed[at : at + 4] = struct.pack("<f", random.choice((float("nan"), float("inf"), 1e38, 0.0, -1.0)))
        data = bytes(changed[: len(data)])
    return header, data


def safetensors_file(random: Random, raw: bytes) -> bytes:
    """A safetensors file of somebody else's."""
    if random.random() < 0.3:
        return damaged(random, raw)
    header, data = _tensors(random, *_parts(raw))
    return _joined(text_of(random, header, compact=True), data)


def sealed(told: str, header: dict[str, Any], data: bytes) -> bytes:
    """A container whose metadata says this, with its seal."""
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    whole = bytearray(_joined(_text({"__metadata__": {"fxdistill": told}, **tensors}), data))
    opening = whole.index(b'{\\"seal\\":\\"') + len(b'{\\"seal\\":\\"')
    whole[opening : opening + 64] = b"0" * 64
    whole[opening : opening + 64] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole)


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def resealed(random: Random, raw: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """A container whose seal is right, and whose content or tensors are not what they were."""
    header, data = _parts(raw)
    told = json.loads(header["__metadata__"]["fxdistill"])
    graph = told["content"].get("graph")
    chance = random.random()
    if chance < 0.15:
        header, data = _tensors(random, header, data)
    elif chance < 0.2:
        rest = edited(random, {name: value for name, value in told.items() if name != "seal"})
        told = {"seal": "", **(rest if isinstance(rest, dict) else {"kind": rest})}
    elif graph and chance < 0.7:
        _graph(random, graph)
    else:
        spliced = tuple(json.loads(_parts(other)[0]["__metadata__"]["fxdistill"])["content"] for other in others)
        told["content"] = edited(random, told["content"], spliced)
    return sealed(text_of(random, told, compact=True), header, data)


def _graph(random: Random, graph: dict[str, Any]) -> None:
    """Nodes and layers of a graph, by the names that there are."""
    nodes = graph["nodes"]
    at = random.randrange(1, len(nodes))
    before = [node["name"] for node in nodes[:at]]
    kind = random.randrange(7)
    if kind < 3:
        op = random.choice(("call_function", "call_function", "call_method", "get_attr", "call_module", "placeholder"))
        target = random.choice((random.choice(NAMES), word(random)))
        target = (
            f"aten.{target.rpartition('.')[2]}.{random.choice(('default', 'Tensor', 'out', 'dim'))}"
            if random.random() < 0.3
            else target
        )
        values = [argument(random, before) for _ in range(random.randrange(4))]
        options = {"dict": [[word(random), argument(random, before)]]} if random.random() < 0.2 else {"dict": []}
        made = {
            "op": op,
            "name": random.choice(("new", "new", word(random))),
            "target": target,
            "scope": "",
            "args": {"tuple": values},
            "kwargs": options,
        }
        nodes.insert(at, made)
        if random.random() < 0.7 and at + 1 < len(nodes):
            nodes[at + 1] = json.loads(_text(nodes[at + 1]).replace(_text(before[-1]), _text(made["name"])))
    elif kind == 3:
        nodes[at]["target"] = random.choice((random.choice(NAMES), word(random)))
    elif kind == 4:
        nodes[at]["args"] = {"tuple": [argument(random, before) for _ in range(random.randrange(4))]}
    elif kind == 5:
        holders = [holder for holder, key in slots(graph["modules"]) if key == "class" and holder["class"]]
        if holders:
            random.choice(holders)["class"] = random.choice(list(vocabulary.layers()))
    else:
        holders = [
            holder["attributes"]
            for holder, key in slots(graph["modules"])
            if key == "attributes" and holder["attributes"]
        ]
        if holders:
            attributes = random.choice(holders)
            attributes[random.choice((*attributes, word(random)))] = argument(random, before)


def argument(random: Random, before: list[str]) -> Any:
    """What a node may be given, and what not."""
    kind = random.randrange(8)
    if kind < 3:
        return {"node": random.choice(before)}
    if kind == 3:
        return {"tuple": [random.choice((1, 2, -1, 0, 4, 8)) for _ in range(random.randrange(5))]}
    if kind == 4:
        return random.choice(
            (
                {"constant": random.choice(NAMES)},
                {"constant": "float16"},
                {"function": random.choice(NAMES)},
                {"slice": [None, 1, None]},
            )
        )
    if kind == 5:
        return random.choice((0, 1, 2, -1, 0.5, None, True, "none", "mean"))
    return junk(random)
