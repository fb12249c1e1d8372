"""Data: files that are no images or too much of one, arrays that are objects or more than they say, labels beyond."""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fxdistill.data import classmap
from fxdistill.data.load import load
from tests.security.made import EVIL, TOUCH, Attack, Evil, Make, file, zipped

PIXELS = np.zeros((2, 8, 8), np.uint8)
LABELS = np.array([0, 1])


def read(path: Path, *, kind: str, task: str = "classification") -> object:
    """The data in a place."""
    return load(f"{kind}:{path}", task=task)


NPZ, FOLDER = partial(read, kind="npz"), partial(read, kind="imagefolder")
MASKS, IMAGES = partial(read, kind="masks", task="segmentation"), partial(read, kind="images")


def npz(**change: Any) -> Make:
    """A file of arrays; None leaves one out."""

    def make(folder: Path) -> Path:
        arrays = {
            "train_images": PIXELS,
            "train_labels": LABELS,
            "test_images": PIXELS,
            "test_labels": LABELS,
            **change,
        }
        np.savez(folder / "a.npz", **{name: value for name, value in arrays.items() if value is not None})
        return folder / "a.npz"

    return make


def array(header: str, content: bytes = b"") -> bytes:
    """A file of numpy with a header of one's own."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def arrays(**parts: bytes) -> bytes:
    """An archive of such files, the others as they should be."""
    held = io.BytesIO()
    np.savez(held, train_images=PIXELS, train_labels=LABELS, test_images=PIXELS, test_labels=LABELS)
    with zipfile.ZipFile(held) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    return zipped({**whole, **{f"{name}.npy": part for name, part in parts.items()}}, method=zipfile.ZIP_DEFLATED)


def header(shape: str, kind: str = "|u1") -> bytes:
    return array(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}", bytes(16))


def images(*contents: bytes, name: str = "a.png") -> Make:
    """A folder of two splits and two classes whose images are these bytes."""

    def make(folder: Path) -> Path:
        for part in ("train", "val"):
            for kind in ("x", "y"):
                place = folder / part / kind
                place.mkdir(parents=True)
                for number, content in enumerate(contents):
                    (place / f"{number}{name}").write_bytes(content)
        return folder

    return make


def as_image(kind: str, **options: Any) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(held, kind, **options)
    return held.getvalue()


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of so many pixels, with some rows of zeros in it."""
    said = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", said), *more, (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b",\0\0\0\0" + struct.pack("<HHB", width, height, 0)
    )


BOMB = zlib.compress(bytes(1 << 26))
OTHERS: dict[str, bytes] = {
    "EPS": as_image("EPS"), "PDF": as_image("PDF"), "ICNS": as_image("ICNS"), "SGI": as_image("SGI"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    "a DOS EPS": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 99) + bytes(24) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40), "EMF": b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(40),
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "FLI": bytes(4) + b"\x11\xaf" + bytes(200),
    "PSD": b"8BPS\x00\x01" + bytes(100), "FITS": b"SIMPLE  =                    T".ljust(2880),
    "SVG": b"<svg onload='x'/>",
    "HDF": b"\x89HDF\r\n\x1a\n" + bytes(99), "BUFR": b"BUFR" + bytes(99), "XBM": b"#define a_width 99999999\n",
    "text": b"no",
    "GBR": struct.pack(">IIIII", 28, 2, 9, 9, 1) + b"GIMP" + bytes(99), "pickle": EVIL, "nothing": b"",
    "a PNG of 10^9 pixels": png(40_000, 25_000), "a PNG of 10^18 pixels": png(2**31 - 1, 2**31 - 1),
    "a PNG of 80 million pixels": png(9_000, 9_000), "a thin PNG": png(60_000_000, 1),
    "a PNG without pixels": png(0, 8), "a PNG, half of it": as_image("PNG")[:60],
    "a PNG with 64 MB of text": png(8, 8, (b"zTXt", b"a\0\0" + BOMB)),
    "a PNG with 64 MB of colours": png(8, 8, (b"iCCP", b"a\0\0" + BOMB)),
    "a BMP of 10^9 pixels": bmp(40_000, 25_000), "a BMP without pixels": bmp(0, 0),
    "a BMP upside down": bmp(8, -(2**31)),
    "a GIF of 4 billion pixels": gif(65_535, 65_535), "a GIF without pixels": gif(0, 0),
    "a PPM of 10^12 pixels": b"P6 1000000 1000000 255\n", "a PPM without pixels": b"P6 0 0 255\n",
    "a PPM, plain, of letters": b"P3 8 8 255\n" + b"x " * 99, "a JPEG, half of it": as_image("JPEG")[:-300],
    "a TIFF in itself": b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x100, 4, 1, 9, 8),
    "a TIFF of 10^9 pixels": b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHII", 256, 4, 1, 40_000)
    + struct.pack("<HHII", 257, 4, 1, 25_000) + bytes(4),
    "an icon of 10^9 pixels": b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 200_000, 22)
    + png(40_000, 25_000),
}  # fmt: skip
LABELLED: dict[str, Mapping[str, Any]] = {
    "a label of 2**62": {"train_labels": np.array([0, 2**62])},
    "a label of 2**64 - 2": {"train_labels": np.array([0, 2**64 - 2], np.uint64)},
    "a label of 2**20": {"test_labels": np.array([0, 2**20])},
    "a negative label": {"train_labels": np.array([0, -2])},
    "a label of 1e300": {"train_labels": np.array([0, 1e300])},
    "a label that is NaN": {"train_labels": np.array([0.0, np.nan])},
    "a label that is infinite": {"train_labels": np.array([0.0, -np.inf])},
    "labels of text": {"train_labels": np.array(["a", "b"])},
    "labels of pairs": {"train_labels": np.zeros(2, [("a", "i4")])},
    "labels of dates": {"train_labels": np.array(["2020-01-01", "2021-01-01"], "M8[D]")},
    "complex labels": {"train_labels": np.array([0, 1j])},
    "one label": {"train_labels": np.array(0)},
    "labels without names": {"classes": np.array(["a"])},
    "names twice": {"classes": np.array(["a", "a"])},
    "names of a terminal": {"classes": np.array(["a", "\x1b[2J"])},
    "names that are numbers": {"classes": np.array([1, 2])},
    "fewer labels": {"train_labels": np.array([0])},
    "objects": {"train_images": np.array([Evil()], dtype=object)},
    "objects for names": {"classes": np.array([Evil(), Evil()], dtype=object)},
    "images without pixels": {"train_images": np.zeros((2, 0, 8), np.uint8)},
    "no images": {"train_images": np.zeros((0, 8, 8), np.uint8), "train_labels": np.zeros(0, int)},
    "pixels that are NaN": {"train_images": np.full((2, 8, 8), np.nan)},
    "five dimensions": {"train_images": np.zeros((2, 1, 1, 8, 8), np.uint8)},
    "offsets beyond": {"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([2**62])},
    "offsets before": {"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([-5])},
    "offsets in two dimensions": {
        "train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.zeros((3, 3), int),
    },
    "a blob of an EPS": {
        "train_images": None, "train_blob": np.frombuffer(OTHERS["EPS"] * 2, np.uint8),
        "train_offsets": np.arange(3) * len(OTHERS["EPS"]),
    },
}  # fmt: skip
MADE: dict[str, bytes] = {
    "64 MB of zeros": arrays(train_images=header("(67108864,)") + bytes(1 << 26)),
    "an array of 2**60": arrays(train_images=header("(1152921504606846976,)")),
    "an array of 8 GB": arrays(train_images=header("(8589934592,)")),
    "a shape beyond all numbers": arrays(train_images=header("(4611686018427387904, 4611686018427387904)")),
    "a negative shape": arrays(train_images=header("(-1, 8, 8)")),
    "a pickle for an array": arrays(train_images=EVIL),
    "a pickle in an array": arrays(train_images=header("(1,)", "|O") + pickle.dumps(Evil())),
    "code for a header": arrays(train_images=array(f"exec({TOUCH!r})")),
    "a deep header": arrays(train_images=array("(" * 99 + ")" * 99)),
    "a long header": arrays(train_images=b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"),
    "text of 2 GB": arrays(train_images=header("(4,)", "|S2147483647")),
    "no archive": b"PK\x03\x04" + bytes(99), "a pickle": EVIL, "an array alone": header("(16,)"),
    "bzip2": zipped({"train_images.npy": header("(16,)")}, method=zipfile.ZIP_BZIP2),
}  # fmt: skip


def masked(values: Any) -> Make:
    """Two images with masks of these values."""

    def make(folder: Path) -> Path:
        for part in ("train", "val"):
            for kind, held in (("images", np.zeros((8, 8, 3), np.uint8)), ("masks", values)):
                (folder / part / kind).mkdir(parents=True)
                Image.fromarray(held).save(folder / part / kind / "a.png", "TIFF")
        return folder

    return make


def cifar(folder: Path) -> Path:
    """The files of CIFAR-10, each a pickle that runs code."""
    (folder / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / "cifar-10-batches-py" / name).write_bytes(EVIL)
    return folder


def idx(folder: Path) -> Path:
    """The files of Fashion-MNIST, which say that they are larger."""
    place = folder / "FashionMNIST" / "raw"
    place.mkdir(parents=True)
    for part in ("train", "t10k"):
        (place / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 2**31 - 1, 28, 28) + bytes(99))
        (place / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 2**31 - 1) + bytes(99))
    return folder


def looped(folder: Path) -> Path:
    """Folders that are linked to from inside themselves, and a link that leaves."""
    images(b"no")(folder)
    (folder / "train" / "x" / "again").symlink_to(folder)
    (folder / "train" / "x" / "shadow.png").symlink_to("/etc/hostname")
    return folder


ATTACKS: dict[str, Attack] = {
    **{f"image, {name}": Attack(images(made), FOLDER) for name, made in OTHERS.items()},
    "image without a class, EPS": Attack(images(OTHERS["EPS"]), IMAGES),
    "image, another name": Attack(images(OTHERS["EPS"], name="a.jpg"), FOLDER),
    "image folder that is linked": Attack(looped, FOLDER),
    **{f"npz, {name}": Attack(npz(**change), NPZ) for name, change in LABELLED.items()},
    **{f"npz of {name}": Attack(file("a.npz", made), NPZ) for name, made in MADE.items()},
    "masks, a class of 2**31": Attack(masked(np.full((8, 8), 2**31 - 1, np.int32)), MASKS),
    "masks of colours": Attack(masked(np.zeros((8, 8, 3), np.uint8)), MASKS),
    "masks of another size": Attack(masked(np.zeros((8, 9), np.uint8)), MASKS),
    "CIFAR-10 of pickles": Attack(cifar, partial(read, kind="cifar10")),
    "Fashion-MNIST that says more": Attack(idx, partial(read, kind="fashion-mnist")),
    "class map, a number of 2**62": Attack(file("a.json", b'{"a": 4611686018427387904}'), classmap.read),
    "class map, names twice": Attack(file("a.txt", b"a\nb\na\n"), classmap.read),
    "class map, a deep one": Attack(file("a.json", b"[" * 100_000), classmap.read),
    "class map of lists": Attack(file("a.json", b'[["a"], ["a"]]'), classmap.read),
}
