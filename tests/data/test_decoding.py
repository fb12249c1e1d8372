"""Decoding: what files hold beyond 8 bits of gray or colours comes out as a viewer, or torchvision, would have it."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fxdistill.data.decoding import opened, plain
from fxdistill.data.sources._images import decoded, fitted
from fxdistill.errors import DataError
from fxdistill.preprocessing import Reading

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
GRAY = COLOURS[:, :, 0].copy()
SMALL = Reading((4, 4), (4, 4), channels=1)
DEEP = RANDOM.integers(0, 65536, (4, 6), dtype=np.uint16)


def encoded(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def with_alpha(pixels: Any) -> Image.Image:
    image = Image.fromarray(pixels)
    image.putalpha(Image.fromarray(RANDOM.integers(0, 256, pixels.shape[:2], dtype=np.uint8)))
    return image


PALETTE = Image.fromarray(COLOURS).quantize(8)
OF_PALETTE = np.asarray(PALETTE.convert("RGB"))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (lambda: encoded(Image.fromarray(COLOURS), "PNG"), COLOURS),
        (lambda: encoded(Image.fromarray(GRAY), "PNG"), GRAY),
        (lambda: encoded(Image.fromarray(GRAY > 99), "PNG"), np.where(GRAY > 99, 255, 0)),
        (lambda: encoded(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
        (lambda: encoded(with_alpha(COLOURS), "PNG"), COLOURS),
        (lambda: encoded(with_alpha(GRAY), "PNG"), GRAY),
        (lambda: encoded(PALETTE, "PNG"), OF_PALETTE),
        (lambda: encoded(PALETTE, "PNG", transparency=0), OF_PALETTE),
        (lambda: encoded(PALETTE, "PNG", transparency=bytes([0, 9, 200])), OF_PALETTE),
        (lambda: encoded(Image.fromarray(DEEP), "PNG"), np.round(DEEP / 257)),
        (lambda: encoded(Image.fromarray(DEEP), "TIFF"), np.round(DEEP / 257)),
        (lambda: encoded(Image.fromarray(DEEP), "PPM"), np.round(DEEP / 257)),
        (lambda: encoded(Image.fromarray(DEEP.astype(np.float32) / 65535), "TIFF"), np.round(DEEP / 257)),
        (lambda: encoded(Image.fromarray(COLOURS), "PNG", exif=turned(6)), np.rot90(COLOURS, -1)),
        (lambda: encoded(Image.fromarray(COLOURS), "PNG", exif=turned(3)), np.rot90(COLOURS, 2)),
        (lambda: encoded(Image.fromarray(COLOURS), "PNG", exif=turned(2)), COLOURS[:, ::-1]),
        (lambda: encoded(Image.fromarray(DEEP), "PNG", exif=turned(6)), np.rot90(np.round(DEEP / 257), -1)),
        (
            lambda: encoded(PALETTE, "GIF", save_all=True, append_images=[Image.fromarray(~COLOURS)]),
            OF_PALETTE,
        ),
        (
            lambda: encoded(Image.fromarray(COLOURS), "PNG", save_all=True, append_images=[Image.fromarray(~COLOURS)]),
            COLOURS,
        ),
        (
            lambda: encoded(Image.fromarray(GRAY), "TIFF", save_all=True, append_images=[Image.fromarray(~GRAY)]),
            GRAY,
        ),
    ],
)  # fmt: skip
def test_files_of_every_kind(file: Callable[[], io.BytesIO], expected: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = opened(file())
    assert image.mode == ("RGB" if expected.ndim == 3 else "L")
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("kind", ["CMYK", "YCbCr"])
def test_colour_spaces_of_jpeg_come_out_near_the_original(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 60, 20))
    found = np.asarray(opened(encoded(image.convert(kind), "JPEG", quality=95))).astype(int)
    assert np.abs(found - (200, 60, 20)).max() <= 6


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "HSV", "RGBX", "LAB", "I;16B"])
def test_modes_that_pillow_makes_in_memory(mode: str) -> None:
    assert plain(Image.new(mode, (3, 2))).mode in ("L", "RGB")


@pytest.mark.parametrize(
    "values",
    [DEEP.astype(np.int32) * 7000, -DEEP.astype(np.int32) - 1, DEEP.astype(np.float32), np.full((2, 2), np.nan)],
)
def test_values_without_a_known_range_are_refused_with_the_file(values: Any) -> None:
    file = encoded(Image.fromarray(values.astype(np.float32) if values.dtype == np.float64 else values), "TIFF")
    with pytest.raises(DataError, match=r"the image cannot be read: its gray values lie in .* has a meaning") as caught:
        decoded(file, name="the image cannot be read", where="a/b.tif", hint="write it again", reading=SMALL)
    assert caught.value.where == "a/b.tif"


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "XBM"])
def test_formats_that_start_programs_or_nobody_trains_on_are_not_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By content, whatever the name says: an EPS file has Pillow start Ghostscript."""
    started: list[Any] = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **_: started.append(args))
    monkeypatch.setattr("subprocess.check_call", lambda *args, **_: started.append(args))
    file = tmp_path / "image.png"
    image = Image.fromarray(COLOURS) if kind != "XBM" else Image.fromarray(GRAY > 99)
    image.resize((16, 16)).save(file, kind)
    with pytest.raises(DataError, match="cannot identify"):
        decoded(str(file), name="the image", where="here", hint="look", reading=SMALL)
    assert not started


@pytest.mark.parametrize(("width", "height"), [(1 << 13, (1 << 13) + 1), (1 << 28, 2), (60000, 60000)])
def test_images_of_more_pixels_than_any_has_are_not_decoded(tmp_path: Path, width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises((ValueError, Image.DecompressionBombError), match="pixels"):
        opened(str(tmp_path / "a.png"))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_thin_image_is_not_brought_to_a_size_that_nobody_has(fit: Any) -> None:
    thin = Image.fromarray(np.zeros((1, 70_000), np.uint8))
    reading = Reading((224, 224), (256, 256), fit=fit, channels=1)
    if fit != "squash":
        with pytest.raises(ValueError, match="pixels"):
            fitted(thin, reading)
    else:
        assert fitted(thin, reading).size == (224, 224)
