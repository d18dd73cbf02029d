"""Pictures of every kind, good and bad, through halfv_edge.engine.images."""

from __future__ import annotations

import base64
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfv_edge.engine import images
from halfv_edge.errors import HalfVError
from tests.support.hostile import bomb

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 40, height: int = 30) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def pixels(source: object) -> np.ndarray:
    picture = images.load(source)
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image)


def test_every_way_to_give_a_picture(tmp_path: Path) -> None:
    image = photo()
    raw = encoded(image)
    path = tmp_path / "photo.png"
    path.write_bytes(raw)
    uri = "data:image/png;base64," + base64.b64encode(raw).decode()
    sources = [path, str(path), raw, bytearray(raw), memoryview(raw), image, np.asarray(image), uri]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), np.asarray(image), str(type(source)))
    assert len({images.load(source).digest() for source in sources}) == 1
    assert images.load(photo(41)).digest() != images.load(image).digest()


def test_what_url_says_is_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path for a path; a data URL of the file, or of the pixels, for everything else."""
    path = tmp_path / "photo.png"
    photo().save(path)
    monkeypatch.chdir(tmp_path)
    jpeg = encoded(photo(), "JPEG")
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    for source, expected in (
        ("photo.png", str(path)),
        (path, str(path)),
        (path.as_uri(), str(path)),
        (uri, uri),
        (jpeg, uri),
        (encoded(photo(), "WEBP"), "data:image/webp;base64,"),
        (photo(), "data:image/png;base64,"),
        (np.asarray(photo()), "data:image/png;base64,"),
    ):
        url = images.load(source).url()
        assert url.startswith(expected)
        assert images.load(url).digest() == images.load(source).digest()


def test_the_same_pixels_in_another_shape_are_another_picture() -> None:
    flat = np.zeros((2, 8, 3), np.uint8)
    assert images.load(flat).digest() != images.load(flat.reshape(4, 4, 3)).digest()


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (10, 0, 20, 10))  # right half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right
    turned = pixels(encoded(image, "JPEG", quality=95, exif=exif))
    assert turned.shape == (20, 10, 3)
    assert turned[2, 5, 0] > 200 and turned[17, 5, 2] > 200


def test_broken_exif_does_not_matter() -> None:
    raw = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30)
    assert pixels(raw).shape == (30, 40, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    raw = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert tuple(pixels(raw)[8, 8]) == RED


def test_sixteen_bits() -> None:
    grey = np.array([[0, 0x7FFF, 0xFFFF]], np.uint16)
    expected = [0, 0x7F, 0xFF]
    for source in (grey, encoded(Image.fromarray(grey)), encoded(Image.fromarray(grey), "TIFF"), grey.astype(">u2")):
        assert pixels(source)[0, :, 0].tolist() == expected
    dark = np.array([[0, 200, 255]], np.uint16)  # nearly black, not nearly white
    assert pixels(encoded(Image.fromarray(dark)))[0, :, 0].tolist() == [0, 0, 0]


def test_transparency_is_put_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert tuple(pixels(encoded(clear))[0, 0]) == WHITE
    half = Image.new("LA", (4, 4), (0, 128))
    assert pixels(encoded(half))[0, 0, 0] in range(125, 130)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert tuple(pixels(encoded(palette, transparency=1))[0, 0]) == WHITE
    assert tuple(pixels(encoded(palette, transparency=0))[0, 0]) == GREEN


def test_colour_models() -> None:
    assert pixels(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", quality=95))[0, 0, 0] > 200
    assert tuple(pixels(encoded(Image.new("1", (4, 4), 1)))[0, 0]) == WHITE
    assert tuple(pixels(encoded(Image.new("L", (4, 4), 90)))[0, 0]) == (90, 90, 90)
    assert tuple(pixels(Image.new("F", (4, 4), 0.5))[0, 0]) == (128, 128, 128)


def test_sixteen_bits_in_thirty_two() -> None:
    """Pillow's mode I, as depth maps and X-ray pictures have it: scaled where it is more than eight bits."""
    deep = Image.fromarray(np.array([[0, 0x7FFF, 0xFFFF]], np.int32))
    assert deep.mode == "I"
    assert pixels(deep)[0, :, 0].tolist() == [0, 127, 255]
    assert pixels(Image.fromarray(np.array([[0, 200, 255]], np.int32)))[0, :, 0].tolist() == [0, 200, 255]


def test_floats_up_to_255() -> None:
    assert pixels(np.array([[0.0, 100.4, 300.0]], np.float32))[0, :, 0].tolist() == [0, 100, 255]


def test_arrays() -> None:
    assert tuple(pixels(np.full((2, 3), 0.5, np.float32))[0, 0]) == (128, 128, 128)
    assert tuple(pixels(np.full((2, 3, 1), 7, np.int64))[0, 0]) == (7, 7, 7)
    assert tuple(pixels(np.ones((2, 3), bool))[0, 0]) == WHITE
    assert tuple(pixels(np.zeros((2, 3, 4), np.uint8))[0, 0]) == WHITE
    assert tuple(pixels(np.full((2, 2, 3), np.nan))[0, 0]) == (0, 0, 0)
    np.testing.assert_array_equal(pixels(np.asarray(photo())[::-1, ::2]), np.asarray(photo())[::-1, ::2])


TRUNCATED = encoded(photo(400, 300), "JPEG")[:-900]
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"I am no image at all, sorry", "is not an image that can be read: give PNG, JPEG"),
    "truncated jpeg": (TRUNCATED, "is cut short or damaged"),
    "truncated png": (encoded(photo(400, 300))[:500], "is cut short or damaged"),
    "jpeg header only": (b"\xff\xd8\xff\xe0", "is not an image that can be read"),
    "png header only": (b"\x89PNG\r\n\x1a\n", "is not an image that can be read"),
    "bomb": (bomb(20000, 20000), "million pixels"),
    "bomb below Pillow's limit": (bomb(12000, 10000), "12000 x 10000: scale it down to at most 100 million pixels"),
    "pdf": (b"%PDF-1.7 ...", "is a PDF, not an image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
    "number": (7, "A int is not an image"),
    "none": (None, "A NoneType is not an image"),
    "array of one dimension": (np.zeros(5, np.uint8), "shape (5,)"),
    "array of two channels": (np.zeros((5, 5, 2), np.uint8), "shape (5, 5, 2)"),
    "array without rows": (np.zeros((0, 5, 3), np.uint8), "shape (0, 5, 3)"),
    "array of text": (np.array([["a"]]), "array of <U1"),
    "uri without comma": ("data:image/png;base64", "has no comma"),
    "uri not base64": ("data:image/png;base64,!!!", "is not valid base64"),
    "uri of text": ("data:text/plain,hello", "The data URL of 5 bytes is not an image"),
    "no such file": ("no/such/file.png", "no/such/file.png does not exist"),
    "null in the name": ("a\0b.png", "cannot be read"),
    "url": ("HTTP://127.0.0.1:1/a.png", "HTTP://127.0.0.1:1/a.png is not fetched: download it, and give the file"),
    "base64 without its head": ("A" * 5000, f"{'A' * 200}... is too long for a path: base64 goes into a data: URL"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_sentence(name: str) -> None:
    source, expected = BAD[name]
    with pytest.raises(HalfVError) as error:
        images.load(source)
    message = str(error.value)
    assert expected in message
    assert "\n" not in message and message.endswith(".")


HEIC = b"\0\0\0\x18ftypheic" + bytes(40)


def test_heic_without_its_reader_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(HalfVError, match="is HEIC, which cannot be read: convert it to JPEG, or `pip install pillow"):
        images.load(HEIC)


def test_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is HEIC goes to its reader, which adds no format to Pillow."""
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: pip install 'halfv-edge[heic]'")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(file)
    picture = images.load(file.getvalue()).image
    assert picture.size == (64, 48) and np.abs(np.asarray(picture, int) - (200, 30, 30)).max() <= 4
    for damaged in (file.getvalue()[:-20], HEIC):
        with pytest.raises(HalfVError, match="is cut short or damaged"):
            images.load(damaged)
    assert "HEIF" not in Image.OPEN


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(TRUNCATED)
    with pytest.raises(HalfVError, match=r"holiday\.jpg is cut short"):
        images.load(path)
    with pytest.raises(HalfVError, match=r"is a folder: name the image in it"):
        images.load(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(HalfVError, match="is not a regular file"):
        images.load(tmp_path / "pipe.png")


def test_a_bomb_costs_no_memory() -> None:
    """In a process that may not have the 1.2 GB that it would decode to."""
    script = (
        "import sys\nfrom halfv_edge.engine import images\nfrom halfv_edge.errors import HalfVError\n"
        "try:\n    images.load(sys.stdin.buffer.read())\nexcept HalfVError as error:\n    print(error)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (800 << 20, 800 << 20))

    done = subprocess.run(
        [sys.executable, "-c", script], input=bomb(20000, 20000), capture_output=True, preexec_fn=limit, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "million pixels" in done.stdout.decode()


def test_a_large_photo_is_decoded_smaller() -> None:
    raw = encoded(Image.new("L", (9000, 6000), 77), "JPEG")
    image = images.load(raw).image
    assert image.size == (4500, 3000)
    assert image.getpixel((5, 5)) == (77, 77, 77)


def test_damage_anywhere_is_an_error_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        raw = np.frombuffer(encoded(photo(), kind), np.uint8)
        for _ in range(60):
            broken = raw.copy()
            broken[rng.integers(0, min(len(raw), 400), 3)] = rng.integers(0, 256, 3)
            try:
                assert images.load(broken.tobytes()).image.mode == "RGB"
            except HalfVError as error:
                assert "\n" not in str(error)


def test_file_urls(tmp_path: Path) -> None:
    """As file managers paste them."""
    path = tmp_path / "a cat #1.png"
    Image.new("RGB", (3, 2), "red").save(path)
    assert (
        images.load(path.as_uri()).image.size
        == images.load(f"file://localhost{path.as_uri()[7:]}").image.size
        == (3, 2)
    )
    for url, reason in (
        ("file:///nope.png", "/nope.png does not exist"),
        ("file://server/cat.png", "is on another machine, server"),
        ("file://[cat.png", "is not a valid URL"),
    ):
        with pytest.raises(HalfVError, match=reason):
            images.load(url)
