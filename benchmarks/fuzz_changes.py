"""Changes to JSON and to bytes: each a function of a random state and of what it changes.

Beside these are :mod:`benchmarks.fuzz_containers` (safetensors, our own format) and :mod:`benchmarks.fuzz_archives`
(pickles, zips, arrays, images). Where a format has checksums of its own (a container's seal, a zip's and a PNG's CRCs)
they are made anew, so that what lies behind them is reached.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from fxdistill.modelfiles.graphs import vocabulary

MARK = "fxdistill_was_here"
PAYLOAD = f"open({MARK!r}, 'w').close()"
Change = Callable[[Random, bytes], bytes]
_HUGE, _DEEP = "@huge@", "@deep@"
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 256, 65535, 2**31 - 1, -(2**31), 2**32, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64,
    10**30,
    0.0, -0.0, 0.5, -0.5, 1e-300, 1e18, 1e308, float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip
_PATHS = ("../x", "/etc/passwd", "..", ".", "a/b", "\\\\host\\x", "C:\\x", "http://localhost:1/x", "x\x00y", "~", "")
_TEXTS = (
    "\ud800", "a\udfff", "\x1b[31mred", "x\ny", "\r", "é", "日本", "\u202e", "__class__", "__init__", "__reduce__",
    "__dict__", "self", "class", "None", "nan", "1", PAYLOAD, f"a'), {PAYLOAD}, ('", f"relu(), {PAYLOAD}",
    f"x; import os; os.system('touch {MARK}')", "builtins.eval", "builtins.exec", "operator.methodcaller",
    "operator.attrgetter", "torch.load", "torch.save", "torch.ops.load_library", "aten.from_file.default",
    "aten.save.default", "image.write_file.default", "os:system", "subprocess:Popen", "builtins:eval",
    "timm.models._hub:load_state_dict_from_path", "timm:create_model", "fxdistill.models:resnet",
    "torchvision.models:squeezenet1_1", "transformers:ResNetForImageClassification", "torch.hub:load",
    "_forward_hooks", "forward", "training", "weight", "state", "digits", "npz:x", "images:.", "imagefolder:/",
    "teacher", "student", "control", "distilled", "main", "classification", "segmentation", "regression", "retrieval",
    "multilabel", "adam", "sgd", "cosine", "step", "kd", "pkt", "l1", "mse", "cross-entropy", "attention", "flip",
    "crop:4", "crop:99999", "mixup", "32-true", "16-mixed", "64-true", "slice", "shrink", "1x1", "extended",
)  # fmt: skip
_METHODS = (
    "relu",
    "view",
    "to",
    "type",
    "mean",
    "flatten",
    "cpu",
    "size",
    "expand",
    "repeat",
    "numpy",
    "tofile",
    "share_memory_",
)
_MARKED = ("tensor", "tuple", "items", "float", "node", "dict", "slice", "function", "constant")


def _names() -> list[str]:
    return [*vocabulary.functions(), *vocabulary.layers(), *vocabulary.CONSTANTS, *_METHODS]


NAMES = _names()


def word(random: Random) -> str:
    """A text that somebody could have a reason to write."""
    pool: Any = random.choice((_PATHS, _TEXTS, NAMES, NAMES))
    return str(random.choice(pool))


def junk(random: Random, depth: int = 0) -> Any:
    """Any JSON value, and what marks others in our formats."""
    kind = random.randrange(9 if depth < 3 else 5)
    if kind < 2:
        return random.choice(NUMBERS)
    if kind < 4:
        return word(random)
    if kind == 4:
        return random.choice((None, [], {}, "", _HUGE, _DEEP))
    if kind < 7:
        return [junk(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 7:
        return {random.choice(_MARKED): junk(random, depth + 1)}
    return {word(random): junk(random, depth + 1) for _ in range(random.randrange(3))}


def slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: the list or mapping, and the index or key."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from slots(value[key])


def edited(random: Random, value: Any, others: tuple[Any, ...] = ()) -> Any:
    """A JSON value with one to three edits; what is spliced in comes from itself or from others."""
    root = {"": copy.deepcopy(value)}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(slots(root))
        if not places:
            break
        holder, key = random.choice(places)
        _edit(random, holder, key, places if random.random() < 0.5 or not others else list(slots([*others])))
    return root.get("", junk(random))


def _edit(random: Random, holder: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
    old, other = holder[key], random.choice(places or [(holder, key)])
    kind = random.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict) and key:
        holder[random.choice((word(random), str(other[1])))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, dict):
        holder[random.choice((word(random), str(other[1])))] = copy.deepcopy(old)
    elif kind == 3 and isinstance(holder, list):
        holder.insert(random.randrange(len(holder) + 1), copy.deepcopy(random.choice((old, junk(random)))))
    elif kind == 4 and isinstance(holder, list):
        random.shuffle(holder)
    elif kind < 7:
        holder[key] = copy.deepcopy(other[0][other[1]])
    elif kind == 7 and isinstance(old, int | float):
        holder[key] = random.choice((old + 1, old - 1, -old, old * 1000, float(old), str(old), [old], bool(old)))
    elif kind == 7 and isinstance(old, str):
        holder[key] = random.choice((old + word(random), old[:-1], old.upper(), old * 500, word(random), [old]))
    else:
        holder[key] = junk(random)


def gentle(random: Random, raw: bytes) -> bytes:
    """A JSON file with a few values in the place of others of their kind, or numbers that are near."""
    root = json.loads(raw)
    leaves = [(holder, key) for holder, key in slots(root) if type(holder[key]) in (int, float, str, bool)]
    lists = [(holder, key) for holder, key in slots(root) if isinstance(holder[key], list)]
    for _ in range(random.choice((1, 1, 2))):
        holder, key = random.choice(lists if random.random() < 0.2 else leaves)
        old = holder[key]
        if isinstance(old, list):
            parts = random.choices(old, k=random.randrange(len(old) + 2)) if old else []
            holder[key] = random.choice((parts, old[::-1], old[:-1], old[1:]))
        elif type(old) in (int, float) and random.random() < 0.7:
            holder[key] = random.choice((old + 1, old - 1, 2 * old, old * 10, 0 * old, -old))
        else:
            other, name = random.choice([place for place in leaves if type(place[0][place[1]]) is type(old)])
            holder[key] = other[name]
    return json.dumps(root).encode()


def text_of(random: Random, value: Any, *, compact: bool = False) -> str:
    """JSON of a value, with what ``json.dumps`` does not write: nesting that is too deep, fields that stand twice."""
    text = json.dumps(value, separators=(",", ":") if compact else None)
    depth = random.choice((150, 900, 30_000))
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth).replace(_HUGE, "x" * random.choice((1000, 100_000)))
    fields = [match.end() for match in re.finditer(r'"\w+": ?(?:\d+|"[^"\\]*"|null|true|false),', text)]
    if fields and random.random() < 0.05:
        end = random.choice(fields)
        start = text.rindex(",", 0, end - 1) + 1 if "," in text[: end - 1] else 0
        text = text[:end] + text[start:end] + text[end:] if text[start:end].lstrip().startswith('"') else text
    return text


def json_file(random: Random, raw: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """A JSON file: its values, or now and then its text."""
    if random.random() < 0.1:
        return damaged(random, raw)
    values = tuple(json.loads(other) for other in others)
    return text_of(random, edited(random, json.loads(raw), values)).encode("utf-8", "surrogatepass")


def lines_file(random: Random, raw: bytes) -> bytes:
    """JSON lines."""
    lines = raw.splitlines()
    kind = random.randrange(5)
    if kind == 0:
        return damaged(random, raw)
    if kind == 1:
        random.shuffle(lines)
    elif kind == 2:
        lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
    else:
        at = random.randrange(len(lines))
        lines[at] = json_file(random, lines[at])
    return b"\n".join(lines) + b"\n"


def damaged(random: Random, raw: bytes) -> bytes:
    """Bytes flipped, cut, repeated, inserted, or numbers in them made extreme."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        at = random.randrange(len(data) or 1)
        kind = random.randrange(8)
        if kind < 3 and data:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + random.randrange(1, 65)]
        elif kind == 5:
            data[at:at] = data[at : at + random.randrange(1, 65)] or b"\x00"
        elif kind == 6:
            data[at:at] = random.randbytes(random.randrange(1, 9))
        else:
            size, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
            half = 1 << (8 * size - 1)
            number = random.choice((0, 1, 2 * half - 1, half - 1, half, 10_000))
            data[at : at + size] = (number % (1 << (8 * size))).to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(data)


def spliced(random: Random, raw: bytes, other: bytes) -> bytes:
    """The beginning of a file and the end of another."""
    return raw[: random.randrange(1, len(raw))] + other[random.randrange(len(other)) :]
