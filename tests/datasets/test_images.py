"""Image files against pixels worked out without Pillow."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cdelta.datasets import _images
from cdelta.datasets._images import BrokenImage

RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 65535, 24 * 32).round().astype(np.uint16).reshape(24, 32)
# so rough that a lossy format keeps it: four flat quarters of 16 × 16 pixels
QUARTERS = np.kron(
    np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [250, 250, 10]]], np.uint8),
    np.ones((16, 16, 1), np.uint8),
)


def pixels(path):
    return np.asarray(_images.read(path), np.int64)


def png(path, rows, depth, kind, *chunks):
    """A PNG file by its specification: each row of bytes with filter 0 (bits 8 a byte)."""

    def chunk(name, content):
        length, check = (
            struct.pack(">I", len(content)),
            struct.pack(">I", zlib.crc32(name + content)),
        )
        return length + name + content + check

    height, width = rows.shape[0], rows.shape[1] * (8 if depth == 1 else 1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        + b"".join(chunk(*each) for each in chunks)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


# ------------------------------------------------------------------------------- more than 8 bits


def test_16_bit_grey_has_the_values_of_its_8_bit_version(tmp_path):
    deep, shallow = tmp_path / "deep.png", tmp_path / "shallow.png"
    png(deep, RAMP.astype(">u2"), 16, 0)
    png(shallow, np.rint(RAMP / 257).astype(np.uint8), 8, 0)
    found = pixels(deep)
    np.testing.assert_array_equal(found, pixels(shallow))
    np.testing.assert_array_equal(found, np.rint(RAMP / 257)[..., None].repeat(3, -1))
    Image.fromarray(RAMP).save(tmp_path / "pillow.png")
    np.testing.assert_array_equal(pixels(tmp_path / "pillow.png"), found)


@pytest.mark.parametrize("white", [255, 1023, 65535])
def test_a_pgm_says_its_own_white(tmp_path, white):
    values = (RAMP.astype(int) % (white + 1)).astype(np.uint8 if white == 255 else ">u2")
    path = tmp_path / "a.pgm"
    path.write_bytes(f"P5 32 24 {white}\n".encode() + values.tobytes())
    expected = np.rint(values.astype(float) * 255 / white)[..., None].repeat(3, -1)
    # at 1023 Pillow rounds to 65535 first
    np.testing.assert_allclose(pixels(path), expected, atol=white == 1023)


def test_16_bit_colour_is_cut_to_8(tmp_path):
    colour = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    png(tmp_path / "a.png", colour.astype(">u2"), 16, 2)
    np.testing.assert_allclose(pixels(tmp_path / "a.png"), colour / 257, atol=1)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
def test_values_without_a_known_white_are_refused(tmp_path, dtype):
    path = tmp_path / "depth.tif"
    Image.fromarray(RAMP.astype(dtype)).save(path)
    with pytest.raises(BrokenImage, match=r"depth\.tif does not decode: nothing says which of its"):
        _images.read(path)


# -------------------------------------------------------------------------------------- orientation

UPRIGHT = {  # what a viewer makes of the stored rows and columns, by the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = QUARTERS[:, :24]
    upright = UPRIGHT[orientation](stored)
    for name, tolerance in (("a.png", 0), ("a.jpg", 12)):
        Image.fromarray(stored).save(tmp_path / name, exif=exif, quality=95, subsampling=0)
        found = pixels(tmp_path / name)
        assert found.shape == upright.shape
        np.testing.assert_allclose(found, upright, atol=tolerance)
    Image.fromarray(RAMP).save(tmp_path / "deep.png", exif=exif)
    np.testing.assert_array_equal(
        pixels(tmp_path / "deep.png")[..., 0], np.rint(UPRIGHT[orientation](RAMP) / 257)
    )


# ------------------------------------------------------------------------------------- transparency


def on_white(colour, opacity):
    colour = np.asarray(colour, float)
    alpha = np.asarray(opacity, float)[..., None] / 255
    return alpha * colour + (1 - alpha) * 255


def test_opacity_is_blended_with_white(tmp_path):
    colour = RNG.integers(0, 256, (24, 32, 3), np.uint8)
    alpha = np.rint(RAMP / 257).astype(np.uint8)
    png(tmp_path / "rgba.png", np.concatenate([colour, alpha[..., None]], -1), 8, 6)
    np.testing.assert_allclose(pixels(tmp_path / "rgba.png"), on_white(colour, alpha), atol=1)
    png(tmp_path / "la.png", np.stack([colour[..., 0], alpha], -1), 8, 4)
    grey = colour[..., :1].repeat(3, -1)
    np.testing.assert_allclose(pixels(tmp_path / "la.png"), on_white(grey, alpha), atol=1)


def test_a_palette_with_opacities(tmp_path):
    palette = RNG.integers(0, 256, (4, 3), np.uint8)
    index, opacity = RNG.integers(0, 4, (24, 32), np.uint8), np.array([0, 90, 255, 255], np.uint8)
    chunks = (b"PLTE", palette.tobytes()), (b"tRNS", opacity[:2].tobytes())
    png(tmp_path / "a.png", index, 8, 3, *chunks)
    expected = on_white(palette[index], opacity[index])
    np.testing.assert_allclose(pixels(tmp_path / "a.png"), expected, atol=1)


def test_a_colour_that_stands_for_transparent(tmp_path):
    colour = QUARTERS[8:24, 8:24]
    key = (b"tRNS", np.array([250, 10, 10], ">u2").tobytes())
    png(tmp_path / "rgb.png", colour, 8, 2, key)
    expected = np.where((colour == [250, 10, 10]).all(-1, keepdims=True), 255, colour)
    np.testing.assert_array_equal(pixels(tmp_path / "rgb.png"), expected)
    key = (b"tRNS", struct.pack(">H", RAMP[3, 4]))
    png(tmp_path / "deep.png", RAMP.astype(">u2"), 16, 0, key)
    expected = np.rint(RAMP / 257)
    expected[3, 4] = 255
    np.testing.assert_array_equal(pixels(tmp_path / "deep.png")[..., 0], expected)


# --------------------------------------------------------------------------- other kinds of picture


def test_one_bit_and_palette(tmp_path):
    bits = RNG.integers(0, 2, (24, 32), np.uint8)
    png(tmp_path / "bits.png", np.packbits(bits, axis=1), 1, 0)
    np.testing.assert_array_equal(pixels(tmp_path / "bits.png")[..., 0], 255 * bits)
    palette, index = RNG.integers(0, 256, (5, 3), np.uint8), RNG.integers(0, 5, (24, 32), np.uint8)
    png(tmp_path / "palette.png", index, 8, 3, (b"PLTE", palette.tobytes()))
    np.testing.assert_array_equal(pixels(tmp_path / "palette.png"), palette[index])


def test_cmyk_ink_takes_light_away(tmp_path):
    c, m, y, k = 200, 30, 90, 40
    Image.new("CMYK", (16, 16), (c, m, y, k)).save(tmp_path / "a.jpg", quality=100)
    expected = 255 * (1 - np.array([c, m, y]) / 255) * (1 - k / 255)
    np.testing.assert_allclose(pixels(tmp_path / "a.jpg")[8, 8], expected, atol=4)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_of_several_frames_the_first(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#c80000", "#00c800", "#0000c8")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixels(tmp_path / name), np.full((16, 16, 3), (200, 0, 0)), atol=6)


# ----------------------------------------------------------------------------------------- breakage

FORMATS = ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp", "a.ppm"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_named(tmp_path, name):
    path = tmp_path / name
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(BrokenImage, match=rf"{name} does not decode: "):
        _images.read(path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage
def test_damage_is_an_image_or_a_broken_one_and_nothing_else(tmp_path, name):
    path, rng = tmp_path / name, np.random.default_rng(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(QUARTERS).save(path, exif=exif)
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert _images.read(path).mode == "RGB"
        except BrokenImage as error:
            refused += 1
            assert str(path) in str(error)
    assert refused
