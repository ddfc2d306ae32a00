"""Images are opened as a viewer shows them, whatever form their file has."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from repstitch.encoders.images import ImageFile, open_image
from repstitch.encoders.items import read_items
from repstitch.errors import InputError

TURN = 274  # the EXIF tag of the orientation


def picture(height=6, width=10):
    """A colour picture that is another one after any turn or reflection."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def stored(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return ImageFile(f"photo.{kind.lower()}", file.getvalue)


def pixels(item):
    return np.asarray(open_image(item)).astype(int)


# --- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_of_grey_are_the_picture_of_8_bits(kind):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(pixels(stored(Image.fromarray(grey.astype(np.uint16) * 257), kind)), grey)
    assert open_image(stored(Image.fromarray(grey.astype(np.uint16) * 257), kind)).mode == "L"


def test_16_bits_of_grey_are_rounded_to_the_nearest_of_8_bits():
    deep = np.array([[0, 128, 129, 32767, 65406, 65407, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(pixels(stored(Image.fromarray(deep))), np.rint(deep / 257))


def test_16_bits_in_the_other_order_of_bytes_are_the_same_picture():
    deep = np.random.default_rng(0).integers(0, 65536, (4, 5), dtype=np.uint16)
    other = Image.frombytes("I;16B", (5, 4), deep.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(other), pixels(Image.fromarray(deep)))
    np.testing.assert_array_equal(pixels(deep), pixels(Image.fromarray(deep)))


def test_16_bits_a_colour_are_read():
    file = b"P6 2 1 65535\n" + np.array([0, 257, 65535, 2570, 25700, 51400], dtype=">u2").tobytes()
    np.testing.assert_allclose(pixels(file), [[[0, 1, 255], [10, 100, 200]]], atol=1)


@pytest.mark.parametrize("kind", ["F", "I"])
def test_numbers_whose_range_is_not_stated_are_refused(kind):
    image = Image.new(kind, (4, 4))
    with pytest.raises(InputError, match=rf"photo\.tiff must have 8 or 16 bits a channel; got mode {kind}"):
        open_image(stored(image, "TIFF"))
    with pytest.raises(InputError, match=f"an image in memory must have 8 or 16 bits a channel; got mode {kind}"):
        open_image(image)


def test_one_bit_is_black_and_white():
    bits = np.random.default_rng(0).integers(0, 2, (6, 9)).astype(bool)
    np.testing.assert_array_equal(pixels(stored(Image.fromarray(bits))), bits * 255)


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_an_image_is_turned_as_its_tag_says(kind, tag):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that stores the upright picture under the tag
    image = picture()
    lying = image if tag == 1 else image.transpose(Image.Transpose(undo[tag]))
    exif = Image.Exif()
    exif[TURN] = tag
    settings = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(stored(lying, kind, exif=exif, **settings)), pixels(image))


def test_a_jpeg_that_lies_has_the_shape_of_the_upright_photo():
    exif = Image.Exif()
    exif[TURN] = 6
    assert open_image(stored(picture(6, 10), "JPEG", exif=exif)).size == (6, 10)
    upright, lying = pixels(stored(picture(32, 48), "JPEG", quality=95)), stored(picture(32, 48), "JPEG", quality=95)
    np.testing.assert_array_equal(pixels(lying), upright)


def test_a_photo_whose_exif_data_cannot_be_read_is_embedded_as_it_is_stored(monkeypatch, caplog):
    def fail(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    np.testing.assert_array_equal(pixels(stored(picture())), pixels(picture()))
    assert "photo.png is not turned, because its EXIF data cannot be read: not a TIFF file" in caplog.text


# --- transparency and colours -----------------------------------------------------------------------------------------


def test_colours_under_full_transparency_have_no_effect():
    red, blue = (Image.new("RGBA", (4, 4), (*colour, 0)) for colour in ((255, 0, 0), (0, 0, 255)))
    np.testing.assert_array_equal(pixels(stored(red)), pixels(stored(blue)))
    np.testing.assert_array_equal(pixels(stored(red)), np.full((4, 4, 3), 255))


def test_half_a_transparency_is_half_of_white():
    np.testing.assert_allclose(
        pixels(stored(Image.new("RGBA", (1, 1), (0, 100, 200, 128)))), [[[127, 178, 228]]], atol=1
    )
    np.testing.assert_allclose(pixels(stored(Image.new("LA", (1, 1), (0, 128)))), [[[127, 127, 127]]], atol=1)


def test_a_colour_that_stands_for_transparency_is_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(pixels(stored(palette)), [[[255, 0, 0], [0, 255, 0]]])
    np.testing.assert_array_equal(pixels(stored(palette, transparency=0)), [[[255, 255, 255], [0, 255, 0]]])
    np.testing.assert_array_equal(pixels(stored(Image.new("L", (1, 1), 7), transparency=7)), [[[255, 255, 255]]])
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    np.testing.assert_array_equal(pixels(stored(red, transparency=(255, 0, 0))), [[[255, 255, 255]]])


def test_a_value_of_16_bits_that_stands_for_transparency_is_white():
    image = Image.fromarray(np.array([[513, 514]], dtype=np.uint16))
    image.info["transparency"] = 513
    np.testing.assert_array_equal(pixels(image), [[255, 2]])


def test_inks_are_the_colours_that_they_print():
    inks = Image.new("CMYK", (2, 1))
    inks.putdata([(255, 0, 0, 0), (0, 0, 0, 255)])
    np.testing.assert_array_equal(pixels(stored(inks, "TIFF")), [[[0, 255, 255], [0, 0, 0]]])
    np.testing.assert_allclose(pixels(stored(inks.resize((16, 16)), "JPEG"))[0, 0], [0, 255, 255], atol=4)


def test_colours_that_cannot_be_converted_are_refused():
    with pytest.raises(InputError, match="an image in memory must be an image that can be read; conversion from La to"):
        open_image(Image.new("La", (4, 4)))


# --- several pictures in one file -------------------------------------------------------------------------------------


def test_the_first_frame_of_an_animation_is_embedded_with_a_warning(caplog):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    settings = {"save_all": True, "append_images": frames[1:]}
    for kind in ("PNG", "WEBP", "GIF", "TIFF"):
        caplog.clear()
        np.testing.assert_allclose(pixels(stored(frames[0], kind, **settings))[0, 0], [255, 0, 0], atol=3)
        assert f"photo.{kind.lower()} has 2 frames; only the first is embedded." in caplog.text


def test_a_photo_with_a_second_picture_for_its_depth_is_one_photo(caplog):
    open_image(stored(picture(), "MPO", save_all=True, append_images=[picture()]))
    open_image(stored(picture()))
    assert not caplog.records


@pytest.mark.parametrize("packed", [False, True])
def test_images_of_a_format_that_is_not_read_are_counted(tmp_path, caplog, packed):
    import zipfile

    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name in ("a.png", "b/b.tif", "c.GIF", "d.heic", ".e.tif", "notes.txt"):
        (folder / name).write_bytes(b"")
    if packed:
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            for path in folder.rglob("*.*"):
                archive.write(path, path.relative_to(folder))
    caplog.set_level(logging.WARNING)
    source = tmp_path / "p.zip" if packed else folder
    assert read_items(source, "image").ids == ["a.png"]
    assert f"{source} contains 3 images that are not read and have no vectors (first: b/b.tif)" in caplog.text
