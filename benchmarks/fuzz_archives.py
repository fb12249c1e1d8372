"""Changes to pickles, zips, arrays and images: operation by operation, part by part, chunk by chunk."""

import io
import itertools
import pickletools
import re
import struct
import zipfile
import zlib
from random import Random

from benchmarks.fuzz_changes import MARK, PAYLOAD, Change, damaged, word

_PIECES = (
    b"cos\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\neval\n", b"cposix\nsystem\n", b"ctorch\nload\n", b"R", b"b",
    b"o", b"\x81", b"\x93", b"(", b"t", b"0", b"1", b"2", b".", b"}", b"]", b")", b"N", b"K\x01", b"J\xff\xff\xff\xff",
    b"Q", b"h\x00", b"q\x00", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x94", b"s", b"u", b"a", b"e", b"\x8f",
    b"\x90", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8,
    b"X\x10\x00\x00\x00fxdistill_was_he", b"G\x7f\xf0" + bytes(6), b"\x82\x01", b"\x95" + bytes(8),
    b"\x80\x05", b"\x80\xff",
    b"ccopyreg\n_reconstructor\n", b"ccollections\nOrderedDict\n", b"\x96" + b"\xff" * 8, b"\x97", b"P0\n", b"g0\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.storage\n_load_from_bytes\n", b"\x85", b"\x86",
    b"\x87", b"l", b"d",
)  # fmt: skip


def pickled(random: Random, raw: bytes) -> bytes:
    """A pickle, operation by operation."""
    try:
        starts = [place for _, _, place in pickletools.genops(raw) if place is not None]
    except Exception:  # noqa: BLE001  # not the first change
        return damaged(random, raw)
    bounds = [*starts, len(raw)]
    ops = [raw[one:end] for one, end in itertools.pairwise(bounds)]
    for _ in range(random.choice((1, 1, 2, 4))):
        at, kind = random.randrange(len(ops)), random.randrange(7)
        if kind == 0:
            del ops[at : at + random.choice((1, 1, 3))]
        elif kind == 1:
            ops.insert(at, random.choice(ops))
        elif kind == 2:
            other = random.randrange(len(ops))
            ops[at], ops[other] = ops[other], ops[at]
        elif kind == 3 and len(ops[at]) > 1:
            ops[at] = ops[at][:1] + damaged(random, ops[at][1:])
        elif kind == 4:
            ops[at : at + 1] = [ops[at]] * random.choice((2, 50, 3000))
        else:
            ops[at:at] = random.choices(_PIECES, k=random.choice((1, 1, 2, 3)))
        if not ops:
            break
    if random.random() < 0.1:
        code = b"cbuiltins\nexec\nX" + len(PAYLOAD).to_bytes(4, "little") + PAYLOAD.encode() + b"\x85R"
        ops.insert(random.randrange(1, len(ops) + 1) if ops else 0, code)
    return b"".join(ops)


def old_layout(random: Random, raw: bytes) -> bytes:
    """What torch wrote before zips: four pickles, the keys of the storages, and their bytes."""
    streams, at = [], 0
    for _ in range(5):
        end = (
            at
            + next(place for op, _, place in pickletools.genops(raw[at:]) if op.name == "STOP" and place is not None)
            + 1
        )
        streams.append(raw[at:end])
        at = end
    which = random.choice((3, 3, 3, 0, 1, 2, 4, 5))
    if which == 5:
        return raw[:at] + damaged(random, raw[at:])
    streams[which] = pickled(random, streams[which])
    return b"".join(streams) + raw[at:]


def members(raw: bytes) -> list[tuple[str, bytes]]:
    """The parts of a zip."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zipped(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of parts, whose names may stand twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in parts:
            made = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            made.compress_type = method
            archive.writestr(made, content)
    return file.getvalue()


def zip_parts(random: Random, raw: bytes, change: Change) -> bytes:
    """A zip with one part changed, by itself or in the table of contents; its checksums are right."""
    parts = members(raw)
    at = random.randrange(len(parts))
    name, content = parts[at]
    kind = random.randrange(9)
    if kind < 4:
        pickles = [n for n, (one, _) in enumerate(parts) if one.endswith(".pkl")]
        at = random.choice(pickles) if pickles and random.random() < 0.8 else at
        name, content = parts[at]
        parts[at] = (name, change(random, content) if content else random.randbytes(4))
    elif kind == 4:
        del parts[at]
    elif kind == 5:
        folder = name.partition("/")[0]
        extra = (
            "constants.pkl",
            "archive_format",
            "byteorder",
            "version",
            "data.pkl",
            ".format_version",
            ".storage_alignment",
            "DATA.PKL",
            "data/0",
            "data/99",
        )
        parts.insert(
            random.randrange(len(parts) + 1),
            (f"{folder}/{random.choice(extra)}", random.choice((b"big", b"3\n", b"", content, b"999"))),
        )
    elif kind == 6:
        parts[at] = (
            random.choice((name.upper(), f"../{name}", f"/{name}", word(random) or "x", name.replace("/", "\\"))),
            content,
        )
    elif kind == 7:
        parts.append((name, random.choice((content, b"", random.randbytes(16)))))
    else:
        parts[at] = (name, b"\x00" * random.choice((1 << 16, 1 << 22, 1 << 26)))
        return zipped(parts, zipfile.ZIP_DEFLATED)
    return zipped(
        parts, random.choice((zipfile.ZIP_STORED,) * 6 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    )


def zip_fields(random: Random, raw: bytes) -> bytes:
    """The numbers in a zip's own records; or two zips, or anything, before and behind it."""
    data = bytearray(raw)
    chance = random.random()
    if chance < 0.1:
        return random.choice(
            (raw + raw, raw + b"x" * 70, b"PK\x03\x04" + raw, raw[:-22] + zipped([("x", b"")]), b"\x80" + raw)
        )
    records = {b"PK\x03\x04": 30, b"PK\x01\x02": 46, b"PK\x05\x06": 22, b"PK\x06\x06": 56, b"PK\x06\x07": 20}
    for _ in range(random.choice((1, 1, 2))):
        found = [
            (m.start(), m.group())
            for m in re.finditer(b"PK(\x03\x04|\x01\x02|\x05\x06|\x06\x06|\x06\x07)", bytes(data))
        ]
        start, mark = random.choice(found)
        size = random.choice((2, 2, 4))
        at = start + random.randrange(4, records[mark] - size + 1)
        number = random.choice((0, 1, 8, 12, 14, 99, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data))) % (1 << (8 * size))
        data[at : at + size] = number.to_bytes(size, "little")
    return bytes(data)


# --- arrays and images


def _npy(descr: str, shape: str, data: bytes, *, order: str = "False", version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode("utf-8", "surrogatepass")
    head = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    size = len(head).to_bytes(2 if version == 1 else 4, "little") if len(head) < 65536 or version > 1 else b"\xff\xff"
    return b"\x93NUMPY" + bytes([version, 0]) + size + head + data


_DESCR = (
    "'|O'", "'<f8'", "'<f4'", "'|u1'", "'<i8'", "'>i4'", "'|b1'", "'<U4'", "'<U1000000000'", "'|S5'", "'|V8'", "'<c16'",
    "'<M8[s]'", "'<f2'", "'<u8'", "[('a', '<f4')]", "[('a', '|O')]", "'<i8,<f4'", "1", "None", "('<f4', (2,))", "'<g'",
    "''",
    "'|T'", f"__import__('os').system('touch {MARK}')",
)  # fmt: skip
_SHAPES = (
    "()", "(0,)", "(8,)", "(4,)", "(8, 8, 8, 3)", "(8, 3, 8, 8)", "(8, 8, 8)", "(-1,)", "(2**40,)",
    "(4611686018427387904,)", "(True,)", "8", "[8]", "(1099511627776, 8, 8, 3)", "(8, 0, 8, 3)", "(8.0,)",
    "(" + "1, " * 70 + ")", "(65536, 65536)",
    "(8, 8, 8, 1)", "(8, 8, 8, 4)", f"({PAYLOAD},)",
)  # fmt: skip


def npy(random: Random, raw: bytes) -> bytes:
    """An array file: its header, its values."""
    kind = random.randrange(4)
    if kind == 0:
        return damaged(random, raw)
    end = raw.index(b"\n") + 1
    found = re.search(rb"'descr': (.*?), 'fortran_order': \w+, 'shape': (\(.*?\))", raw[:end])
    descr, shape = (found[1].decode(), found[2].decode()) if found else ("'|u1'", "(8,)")
    data = raw[end:]
    if kind == 1:
        descr = random.choice(_DESCR)
    elif kind == 2:
        shape = random.choice(_SHAPES)
    else:
        values = bytearray(data)
        for _ in range(random.choice((1, 3))):
            at = 8 * random.randrange(len(values) // 8 or 1)
            number = random.choice(
                (0, 1, 2, 9, 1000, 1 << 20, (1 << 20) + 1, 1 << 40, 1 << 62, (1 << 64) - 1, (1 << 64) - 100)
            )
            values[at : at + 8] = number.to_bytes(8, "little")
        data = bytes(values[: len(data)])
    order = random.choice(("False",) * 5 + ("True", "1", PAYLOAD))
    return _npy(descr, shape, data, order=order, version=random.choice((1, 1, 1, 2, 3, 9)))


def png(random: Random, raw: bytes) -> bytes:
    """A PNG, chunk by chunk, with its checksums made anew."""
    chunks, at = [], 8
    while at + 8 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]))
        at += size + 12
    at, kind = random.randrange(len(chunks)), random.randrange(6)
    name, content = chunks[at]
    if kind == 0:
        side = random.choice((0, 1, 9, 5000, 9000, 20_000, 60_000, 1 << 20, (1 << 31) - 1)).to_bytes(4, "big")
        head = chunks[0][1]
        chunks[0] = (b"IHDR", random.choice((side + head[4:], head[:4] + side + head[8:], side + side + head[8:])))
    elif kind == 1:
        chunks.insert(random.randrange(len(chunks) + 1), random.choice(chunks))
    elif kind == 2:
        del chunks[at]
    elif kind == 3:
        flood = zlib.compress(b"\x00" * random.choice((1 << 10, 1 << 24)))
        extra = random.choice(
            (
                (b"iCCP", b"x\x00\x00" + flood),
                (b"zTXt", b"k\x00\x00" + flood),
                (b"eXIf", exif(random)),
                (b"iTXt", b"k\x00\x01\x00\x00\x00" + flood),
            )
        )
        chunks.insert(1, extra)
    elif kind == 4:
        chunks[0] = (b"IHDR", chunks[0][1][:8] + bytes(random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5)))
    elif content:
        chunks[at] = (name, damaged(random, content))
    made = b"".join(len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks)
    return raw[:8] + made


def exif(random: Random) -> bytes:
    """An EXIF block with a rotation, or with numbers that lead nowhere."""
    value = random.choice((1, 3, 6, 8, 0, 9, 65535))
    whole = (
        b"II*\x00\x08\x00\x00\x00\x01\x00"
        + struct.pack("<HHII", 0x112, random.choice((3, 4, 2, 99)), random.choice((1, 0, 1 << 30)), value)
        + b"\x00\x00\x00\x00"
    )
    return whole if random.random() < 0.6 else damaged(random, whole)
