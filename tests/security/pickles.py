"""Model files of others: pickles opcode by opcode, in every layout of torch; archives that readers read in two ways."""

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from fxdistill import models
from fxdistill.modelfiles.load import load
from tests.security.made import EVIL, SHAPE, TOUCH, Attack, Evil, Make, file, network, weights, zipped


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


CODE = text(TOUCH)
OPCODES: dict[str, bytes] = {
    "GLOBAL": b"\x80\x02cbuiltins\nexec\n" + CODE + b"\x85R.",
    "STACK_GLOBAL": b"\x80\x04" + text("builtins") + text("exec") + b"\x93" + CODE + b"\x85R.",
    "INST": b"(" + CODE + b"ibuiltins\nexec\n.",
    "OBJ": b"(cbuiltins\nexec\n" + CODE + b"o.",
    "NEWOBJ": b"\x80\x02cbuiltins\nexec\n" + CODE + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + text("builtins") + text("exec") + b"\x93" + CODE + b"\x85}\x92.",
    "BUILD": b"\x80\x02cos\n_Environ\n)\x81}" + text("putenv") + b"cos\nsystem\nsb.",
    "BUILD of a class": b"\x80\x02cbuiltins\nexec\n}" + text("name") + text("x") + b"sb.",
    "EXT": b"\x80\x02\x82\x01.",
    "a dotted name": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + text("id") + b"\x85R.",
    "a reference that is none": b"\x80\x02" + CODE + b"Q.",
    "a reference in text": b"Pbuiltins.exec\n.",
    "a storage of a class": b"\x80\x02(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x01tQ.",
    "a memo of 34 GB": b"\x80\x02]r" + struct.pack("<I", 2**31) + b".",
    "bytes of 16 GB": b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b".",
    "a text of 16 GB": b"\x80\x04\x8d" + struct.pack("<Q", 2**34) + b".",
    "a frame of 16 GB": b"\x80\x04\x95" + struct.pack("<Q", 2**34) + b"].",
    "a number of 4 GB": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "lists of lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "tuples of the same": b"\x80\x02)" + b"2\x86" * 64 + b".",
    "nothing on the stack": b"\x80\x020.",
    "no end": b"\x80\x02]",
}


def with_weights(evil: bytes) -> bytes:
    """A checkpoint whose weights are good, with an opcode's call beside them."""
    held = io.BytesIO()
    torch.save({"state_dict": models.convnet(widths=[4], classes=10).state_dict(), "more": 1}, held)
    with zipfile.ZipFile(held) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in parts if name.endswith("data.pkl"))
    parts[name] = parts[name][:-2] + text("x") + evil + b"u."
    return zipped(parts)


def tar(first: str) -> bytes:
    """The layout of torch before 0.2: an archive of tar."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name in (first, "storages", "tensors", "pickle"):
            part = tarfile.TarInfo(name)
            part.size = len(EVIL)
            archive.addfile(part, io.BytesIO(EVIL))
    return held.getvalue()


def old(*contents: object) -> bytes:
    """The layout before 1.6, with these in the place of what belongs there."""
    return b"".join(pickle.dumps(content, protocol=2) for content in contents)


def lying(field: int, value: int) -> bytes:
    """An archive whose table of contents says another size of its part."""
    content = bytearray(zipped({"a/data.pkl": EVIL}))
    at = content.rindex(b"PK\x01\x02")
    content[at + field : at + field + 4] = struct.pack("<I", value)
    return bytes(content)


def overlapping() -> bytes:
    """A table of contents that names one part many times: a megabyte that is a gigabyte."""
    content = zipped({"a/data.pkl": bytes(1 << 20)})
    at = content.rindex(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entry = content[at:end] * 1000
    return content[:at] + entry + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entry), at, 0)


def exported(parts: dict[str, bytes]) -> Make:
    """A program of torch.export with more in it."""

    def make(folder: Path) -> Path:
        program = torch.export.export(network(), (torch.randn(SHAPE),))
        torch.export.save(program, folder / "a.pt2")
        with zipfile.ZipFile(folder / "a.pt2", "a") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return folder / "a.pt2"

    return make


def torch_saved(**options: bool) -> bytes:
    held = io.BytesIO()
    torch.save(Evil(), held, **options)
    return held.getvalue()


def module() -> bytes:
    held = io.BytesIO()
    torch.save(network(), held)
    return held.getvalue()


def scripted() -> bytes:
    return zipped({"a/data.pkl": EVIL, "a/constants.pkl": EVIL, "a/code/__torch__.py": TOUCH.encode()})


def header(text: bytes, size: int | None = None) -> bytes:
    """A file of safetensors with this header."""
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(16)


SAFETENSORS: dict[str, bytes] = {
    "a header of 2**63": header(b"{}", 2**63),
    "a header of 90 MB that is not there": header(b'{"a":', 90_000_000),
    "lists in the header": header(b'{"__metadata__":' + b"[" * 100_000 + b"}"),
    "tensors in one another": header(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "a shape of 2**62": header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}'),
    "a negative shape": header(b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}'),
    "another number of bytes": header(b'{"a":{"dtype":"F64","shape":[4],"data_offsets":[0,16]}}'),
    "no kind of number": header(b'{"a":{"dtype":"EVIL","shape":[4],"data_offsets":[0,16]}}'),
    "a name twice": header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{}}'),
}
ATTACKS: dict[str, Attack] = {
    "pickle": Attack(file("a.pt", torch_saved()), load),
    "pickle of the old layout": Attack(file("a.pt", torch_saved(_use_new_zipfile_serialization=False)), load),
    "pickle, plain": Attack(file("a.pt", EVIL), load),
    "pickle of a module": Attack(file("a.pt", module), load),
    **{
        f"pickle, {name}": Attack(file("a.pt", zipped({"a/data.pkl": made})), weights) for name, made in OPCODES.items()
    },
    **{f"old pickle, {name}": Attack(file("a.pt", OPCODES[name]), weights) for name in OPCODES if "GB" in name},
    **{
        f"beside weights, {name}": Attack(file("a.pt", with_weights(OPCODES[name][2:-1])), weights, "read")
        for name in ("GLOBAL", "NEWOBJ", "BUILD", "tuples of the same")
    },
    "old layout, code in its mark": Attack(file("a.pt", old(Evil(), 1001, {}, {}, [])), load),
    "old layout, code in its system": Attack(file("a.pt", old(0x1950A86A20F9469CFC6C, 1001, Evil(), {}, [])), load),
    "old layout, code in its keys": Attack(
        file("a.pt", old(0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, Evil())), load
    ),
    "tar": Attack(file("a.pt", tar("sys_info")), load),
    "tar that begins as a pickle": Attack(file("a.pt", tar("\x80\x02.")), load),
    "tar that begins as an archive": Attack(file("a.pt", tar("PK\x03\x04")), load),
    "torch.export": Attack(exported({}), load),
    "torch.export, pickled weights": Attack(exported({"a/data/weights/evil.pt": EVIL}), load),
    "torch.export, pickled constants": Attack(exported({"a/data/constants/evil.pt": EVIL}), load),
    "torch.export, a part in other letters": Attack(exported({"a/DATA/WEIGHTS/WEIGHT_0": EVIL}), load),
    "torch.export of before": Attack(
        file("a.pt2", zipped({"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": EVIL})), load
    ),
    "TorchScript": Attack(file("a.pt", scripted()), load),
    "archive with two tables of contents": Attack(
        file("a.pt", zipped({"a/data.pkl": EVIL}, before=zipped({"a/archive_format": EVIL}))), load
    ),
    "archive in another": Attack(file("a.pt", zipped({"a/x": zipped({"a/data.pkl": EVIL})})[:-30]), load),
    "archive behind something": Attack(file("a.pt", zipped({"a/data.pkl": EVIL}, before=b"PK\x03\x04")), load),
    "archive before something": Attack(file("a.pt", zipped({"a/data.pkl": EVIL}) + b"more"), load),
    "archive, a part in other letters": Attack(file("a.pt", zipped({"a/data.pkl": EVIL, "a/DATA.PKL": EVIL})), load),
    "archive, a path that leaves": Attack(file("a.pt", zipped({"../../data.pkl": EVIL})), load),
    "archive, an absolute path": Attack(file("a.pt", zipped({"/data.pkl": EVIL})), load),
    "archive of zeros": Attack(file("a.pt", zipped({"a/data.pkl": bytes(1 << 26)}, method=zipfile.ZIP_DEFLATED)), load),
    "archive of LZMA": Attack(file("a.pt", zipped({"a/data.pkl": EVIL}, method=zipfile.ZIP_LZMA)), load),
    "archive, a part many times": Attack(file("a.pt", overlapping()), load),
    "archive, a size that is less": Attack(file("a.pt", lying(24, 1)), load),
    "archive, a size that is more": Attack(file("a.pt", lying(24, 2**31)), load),
    "archive, a part of zip64 that is none": Attack(file("a.pt", lying(24, 2**32 - 1)), load),
    "archive, a part that begins elsewhere": Attack(file("a.pt", lying(42, 7)), load),
    **{f"safetensors, {name}": Attack(file("a.safetensors", made), weights) for name, made in SAFETENSORS.items()},
    "safetensors of another model": Attack(file("a.safetensors", to_safetensors({"a": torch.ones(2)})), weights),
}
