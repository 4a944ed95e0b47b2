"""The conversion tool: sources, labels, transforms against arithmetic by hand, and nothing left behind after an error."""

import errno
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from image_sets import convert, encode, labels_of, png, pngs, random_image, refused, tool, write_folder, write_zip
from PIL import Image

from dnnlib import UserError
from training.dataset import ImageFolderDataset, load_array
from training.dataset_sources import class_folders
from training.dataset_writer import make_transform, plain_mode, plain_mode_name
from training.image_store import load_pixels, open_image

ROOT = pathlib.Path(__file__).parent.parent


# Sources.


def test_lmdb(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    source = tmp_path / "church_lmdb"
    images = [random_image(index, size=(8, 8)) for index in range(4)]
    with lmdb.open(str(source), map_size=1 << 20) as database, database.begin(write=True) as transaction:
        for index, image in enumerate(images):
            transaction.put(f"{index:04d}".encode(), encode(image, "webp", lossless=True))
    array = load_array(ImageFolderDataset(convert(source, tmp_path / "out.zip", "--max-images=3")))
    np.testing.assert_array_equal(array, [np.asarray(image).transpose(2, 0, 1) for image in images[:3]])


def test_zip_and_folder_round_trip(tmp_path):
    files = pngs(7)
    labels = [[name.replace("/", "\\"), index % 3] for index, name in enumerate(files)]
    source = write_zip(tmp_path / "source.zip", files, labels)
    as_zip = convert(source, tmp_path / "new" / "out.zip")
    as_folder = convert(as_zip, tmp_path / "folder")
    again = convert(as_folder, tmp_path / "again.zip")
    assert as_zip.read_bytes() == again.read_bytes()
    first, last = (ImageFolderDataset(path, use_labels=True) for path in (source, as_folder))
    np.testing.assert_array_equal(load_array(first), load_array(last))
    np.testing.assert_array_equal(first.get_labels(np.arange(7)), last.get_labels(np.arange(7)))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_file_number_decides_its_folder(tmp_path):
    source = write_folder(tmp_path / "source", {f"{index:04d}.png": png(0, size=(4, 4)) for index in range(1001)})
    with zipfile.ZipFile(convert(source, tmp_path / "out.zip")) as archive:
        names = archive.namelist()
    assert (names[999], names[1000]) == ("00000/img00000999.png", "00001/img00001000.png")


# Labels.


def test_labels_from_sub_folders(tmp_path, capsys):
    files = {f"{name}/{index}.png": png(index) for name in ("zebra", "ape", "cow") for index in range(2)}
    path = convert(write_folder(tmp_path / "animals", files), tmp_path / "out.zip")
    assert [label for _, label in labels_of(path)] == [0, 0, 1, 1, 2, 2]
    assert "from 3 sub-folders, in the order of their names" in (said := capsys.readouterr().out)
    assert "label 0 = ape: 2" in said and "label 2 = zebra: 2" in said


@pytest.mark.parametrize(
    ("names", "forced", "expected"),
    [
        (["b/1.png", "a/2.png"], False, ["b", "a"]),
        (["set/b/1.png", "set/a/2.png"], False, ["b", "a"]),
        (["b/x/1.png", "a/y/2.png"], False, ["b", "a"]),
        (["0/1.png", "1/2.png"], False, ["0", "1"]),
        (["00000/1.png", "00001/2.png"], False, []),
        (["00000/1.png", "00001/2.png"], True, ["00000", "00001"]),
        (["a/1.png", "2.png"], True, []),
        (["a/1.png", "a/2.png"], True, []),
        (["1.png", "2.png"], False, []),
        (["abc/1.png", "abd/2.png"], False, ["abc", "abd"]),
    ],
)
def test_which_folders_are_classes(names, forced, expected):
    classes, reason = class_folders(names, forced)
    assert list(classes.values()) == expected
    assert bool(reason) == (not expected)


def test_label_option(tmp_path):
    files = {"a/1.png": png(1), "b/2.png": png(2)}
    labels = [["a/1.png", 5], ["b/2.png", 7]]
    source = write_zip(tmp_path / "source.zip", files, labels)
    found = [labels_of(convert(source, tmp_path / "out.zip", f"--labels={choice}")) for choice in ("auto", "json", "subfolders", "none")]
    assert [entries and [label for _, label in entries] for entries in found] == [[5, 7], [5, 7], [0, 1], None]
    unlabelled = write_zip(tmp_path / "unlabelled.zip", files, "null")
    assert labels_of(convert(unlabelled, tmp_path / "out.zip")) is None
    dest = f"--dest={tmp_path / 'other.zip'}"
    refused(tmp_path, "--labels=json, but .* no dataset.json with labels", f"--source={unlabelled}", dest, "--labels=json")
    refused(tmp_path, "--labels=json is for folders and zips", "--source=digits", dest, "--labels=json")
    flat = write_folder(tmp_path / "flat", {"1.png": png(1)})
    refused(tmp_path, "all images lie in one folder", f"--source={flat}", dest, "--labels=subfolders")


def test_broken_labels_are_refused(tmp_path):
    files = pngs(3)
    names = list(files)
    dest = f"--dest={tmp_path / 'out.zip'}"
    missing = write_zip(tmp_path / "missing.zip", files, [[names[0], 1]])
    refused(tmp_path, r"no label for 2 of 3 images \(first: .*img00000001", f"--source={missing}", dest)
    absent = write_zip(tmp_path / "absent.zip", files, [[name, 1] for name in [*names[1:], "gone.png"]])
    refused(tmp_path, r"names 1 of 3 files that do not exist \(first: gone\.png\)", f"--source={absent}", dest)


# Colours and sizes.


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_are_left_alone(tmp_path, mode):
    source = write_zip(tmp_path / "source.zip", pngs(2, mode=mode))
    path = convert(source, tmp_path / "out.zip")
    np.testing.assert_array_equal(load_array(ImageFolderDataset(path)), load_array(ImageFolderDataset(source)))


@pytest.mark.parametrize("choice", ["rgb", "l", "rgba"])
def test_convert_makes_all_alike(tmp_path, choice):
    image = random_image(0, size=(8, 8))
    kinds = [image, image.convert("L"), image.convert("P"), image.convert("RGBA"), image.convert("LA"), image.convert("1"), image.convert("CMYK")]
    files = {
        f"{index}.{'tif' if kind.mode == 'CMYK' else 'png'}": encode(kind, "tiff" if kind.mode == "CMYK" else "png")
        for index, kind in enumerate(kinds)
    }
    dataset = ImageFolderDataset(convert(write_folder(tmp_path / "mixed", files), tmp_path / "out.zip", f"--convert={choice}"))
    assert len(dataset) == 7 and dataset.num_channels == {"rgb": 3, "l": 1, "rgba": 4}[choice]
    np.testing.assert_array_equal(dataset[0][0], np.asarray(image.convert(choice.upper())).reshape(8, 8, -1).transpose(2, 0, 1))


def test_palette_transparency_and_depth():
    image = random_image(0, size=(8, 8))
    palette = image.convert("P")
    np.testing.assert_array_equal(plain_mode(palette, "x"), palette.convert("RGB"))
    palette.info["transparency"] = 3
    assert plain_mode(palette, "x").mode == "RGBA"
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert plain_mode(clear, "x", "rgb").getpixel((0, 0)) == (255, 255, 255)
    assert np.asarray(plain_mode(Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)), "x")).tolist() == [[0, 1, 255]]
    with pytest.raises(UserError, match="x has colour mode F"):
        plain_mode(Image.new("F", (2, 2)), "x")


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_a_transparent_colour_is_transparent(mode):
    """As a palette's is, whichever way a PNG says it; the header alone tells it, too."""
    values = {"L": [7, 9], "RGB": [(7, 7, 7), (7, 7, 9)], "1": [0, 255], "I;16": [7 << 8 | 1, 7 << 8 | 2]}[mode]
    image = Image.new(mode, (2, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    opened = open_image(encode(image, transparency=0 if mode == "1" else values[0]), "it")
    expected = "RGBA" if mode == "RGB" else "LA"
    assert plain_mode_name(opened, "it") == expected and plain_mode_name(opened, "it", "rgb") == "RGB"
    load_pixels(opened, "it")
    plain = plain_mode(opened, "it")
    assert plain.mode == expected and [plain.getpixel((x, 0))[-1] for x in range(2)] == [0, 255]
    assert plain_mode(opened, "it", "rgb").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["P", "PA", "L", "LA", "RGB", "RGBA", "CMYK", "1", "I", "I;16"])
@pytest.mark.parametrize("choice", [None, "rgb", "l", "rgba"])
def test_the_header_tells_the_mode_that_comes_out(mode, choice):
    image = Image.new(mode, (2, 2))
    assert plain_mode_name(image, "x", choice) == plain_mode(image, "x", choice).mode


def deep(*values, kind="uint16"):
    return Image.fromarray(np.resize(np.array(values, dtype=kind), [8, 8]))


@pytest.mark.parametrize(("kind", "values"), [("int32", [0, 255]), ("uint16", [0, 4095])])
def test_values_of_fewer_bits_than_their_files_are_not_made_black(tmp_path, kind, values):
    source = write_folder(tmp_path / "source", {f"{index}.tif": encode(deep(*values, kind=kind), "tiff") for index in range(3)})
    expected = rf"the 3 images of 16 or 32 bits in --source would come out almost black: .* no value is above {values[1]:,} of 65,535; scale all"
    refused(tmp_path, expected, f"--source={source}", f"--dest={tmp_path / 'out.zip'}")


def test_sixteen_bits_are_narrowed_alike_in_all_images(tmp_path, capsys):
    """A dark image beside a bright one stays dark."""
    files = {"0.png": encode(deep(0, 300)), "1.png": encode(deep(256, 40000)), "2.png": encode(deep(7, kind="uint8"))}
    images = load_array(ImageFolderDataset(convert(write_folder(tmp_path / "source", files), tmp_path / "out.zip")))
    assert [sorted(set(image.flat)) for image in images] == [[0, 1], [1, 156], [7]]
    assert "2 of 16 bits, of which the upper 8 were kept; their largest value is 40,000 of 65,535" in capsys.readouterr().out


@pytest.mark.parametrize("values", [[-1, 5], [0, 1 << 20]])
def test_values_beyond_sixteen_bits_are_refused(values):
    with pytest.raises(UserError, match=f"x holds values from {values[0]:,} to {values[1]:,}; scale the whole set"):
        plain_mode(deep(*values, kind="int32"), "x")


def test_scaling_and_crops_by_hand():
    # Every filter leaves constant halves constant, so crops can be told by the position of the edge.
    image = Image.fromarray(np.repeat(np.arange(12, dtype=np.uint8) * 20, 8).reshape(12, 8).T.copy())
    assert image.size == (12, 8)
    square = make_transform("center-crop", 8, 8, "box")(image)
    np.testing.assert_array_equal(np.asarray(square), np.asarray(image)[:, 2:10])
    part = make_transform("center-crop", 2, 4, "box")(image)
    np.testing.assert_array_equal(np.asarray(part), np.asarray(image)[:, 4:8].reshape(4, 2, 2, 2).mean(axis=(1, 3)))
    halved = make_transform(None, 6, 4, "box")(image)
    np.testing.assert_array_equal(np.asarray(halved), np.asarray(image).reshape(4, 2, 6, 2).mean(axis=(1, 3)))
    assert make_transform(None, None, None, "lanczos")(image) is image
    assert make_transform(None, 6, None, "lanczos")(image).size == (6, 8)


def test_wide_crop_by_hand():
    pixels = np.random.RandomState(0).randint(0, 256, size=[6, 8, 3], dtype=np.uint8)
    wide = make_transform("center-crop-wide", 8, 4, "box")
    out = np.asarray(wide(Image.fromarray(pixels)))
    assert out.shape == (8, 8, 3) and not out[:2].any() and not out[6:].any()
    resized = Image.fromarray(pixels).resize((8, 4), Image.Resampling.BOX)
    np.testing.assert_array_equal(out[2:6], np.asarray(resized))
    tall = np.random.RandomState(1).randint(0, 256, size=[16, 16, 3], dtype=np.uint8)
    band = Image.fromarray(tall[4:12]).resize((8, 4), Image.Resampling.BOX)
    np.testing.assert_array_equal(np.asarray(wide(Image.fromarray(tall)))[2:6], np.asarray(band))
    assert wide(Image.new("RGB", (7, 7))) is None and wide(Image.new("RGB", (16, 6))) is None
    assert wide(Image.new("RGBA", (8, 8), "white")).getpixel((0, 0)) == (0, 0, 0, 255)


def test_too_small_images_are_left_out_of_a_wide_set(tmp_path, capsys):
    files = {"a.png": png(0, size=(16, 12)), "b.png": png(1, size=(8, 6)), "c.png": png(2, size=(20, 16))}
    source = write_folder(tmp_path / "source", files)
    path = convert(source, tmp_path / "out.zip", "--transform=center-crop-wide", "--width=16", "--height=12")
    assert len(ImageFolderDataset(path)) == 2 and "1 too small and left out" in capsys.readouterr().out
    wide = ("--transform=center-crop-wide", "--width=64", "--height=48")
    refused(tmp_path, "all 3 images are smaller", f"--source={source}", f"--dest={tmp_path / 'none.zip'}", *wide)


def test_filters_differ_and_are_as_named(tmp_path):
    source = write_folder(tmp_path / "source", {"a.png": png(0, size=(32, 32))})
    for name, resample in (("box", Image.Resampling.BOX), ("lanczos", Image.Resampling.LANCZOS)):
        path = convert(source, tmp_path / f"{name}.zip", "--width=8", "--height=8", f"--resize-filter={name}")
        expected = np.asarray(random_image(0, size=(32, 32)).resize((8, 8), resample)).transpose(2, 0, 1)
        np.testing.assert_array_equal(ImageFolderDataset(path)[0][0], expected)


# Mistakes.


@pytest.mark.parametrize("dest", ["out.zip", "out", "deep/er/out.zip", "deep/er/out"])
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("2.png", png(0)[:300], r"2\.png is a torn image"),
        ("2.png", b"-", r"2\.png is not an image"),
        ("2.png", png(0, mode="L"), r"2\.png has colour mode L, the images before it RGB \(in all: RGB: 3, L: 1\); give --convert"),
        ("2.png", png(0, size=(8, 8)), r"2\.png comes out as 8x8 pixels, .* 16x16 \(sizes as stored, in all: 16x16: 3, 8x8: 1\)"),
        ("0.png", png(0, size=(48, 41)), r"0\.png comes out as 48x41 .* --transform=center-crop --width=48 --height=40"),
    ],
)
def test_bad_images_leave_nothing_behind(tmp_path, dest, name, data, message):
    files = {f"{index}.png": png(index) for index in range(4)}
    source = write_folder(tmp_path / "source", {**files, name: data})
    refused(tmp_path, message, f"--source={source}", f"--dest={tmp_path / dest}")


def test_a_failed_conversion_keeps_the_older_zip(tmp_path):
    dest = convert(write_folder(tmp_path / "good", {"1.png": png(1)}), tmp_path / "out.zip")
    before = dest.read_bytes()
    torn = write_folder(tmp_path / "torn", {"1.png": png(1), "2.png": png(2)[:200]})
    refused(tmp_path, "torn", f"--source={torn}", f"--dest={dest}")
    assert dest.read_bytes() == before


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_full_disk(tmp_path, monkeypatch, dest):
    source = write_zip(tmp_path / "source.zip", pngs(3))

    def no_room(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", no_room)
    monkeypatch.setattr(pathlib.Path, "write_bytes", no_room)
    refused(tmp_path, f"{dest}.*No space left", f"--source={source}", f"--dest={tmp_path / dest}")


def test_destinations_that_are_refused(tmp_path):
    source = write_folder(tmp_path / "source", {"1.png": png(1)})
    (tmp_path / "file").write_bytes(b"-")
    (tmp_path / "folder.zip").mkdir()
    for dest, message in (
        (source, "is the source itself"),
        (tmp_path, "is a folder with something in it"),
        (source / "out", r"lies in --source=.*source, which would hold its own copies"),
        (source / "new" / "out", "lies in --source"),
        (tmp_path / "file", "neither a .zip nor a folder"),
        (tmp_path / "file" / "out.zip", "cannot be written"),
        (tmp_path / "file" / "out", "cannot be written"),
        (tmp_path / "folder.zip", "is a folder, though"),
    ):
        refused(tmp_path, message, f"--source={source}", f"--dest={dest}")
    (tmp_path / "empty").mkdir()
    assert len(ImageFolderDataset(convert(source, tmp_path / "empty"))) == 1
    assert len(ImageFolderDataset(convert(source, source / "out.zip"))) == 1


def test_options_and_sources_that_are_refused(tmp_path):
    source = write_folder(tmp_path / "source", {"1.png": png(1)})
    (tmp_path / "set.rar").write_bytes(b"-")
    (tmp_path / "none").mkdir()
    outside = write_zip(tmp_path / "outside.zip", {"../1.png": png(1)})
    dest = f"--dest={tmp_path / 'out.zip'}"
    refused(tmp_path, "needs both --width and --height", f"--source={source}", dest, "--transform=center-crop")
    refused(tmp_path, "--source is missing", dest)
    refused(tmp_path, "--dest is missing", f"--source={source}")
    refused(tmp_path, "is of no known kind", f"--source={tmp_path / 'set.rar'}", dest)
    refused(tmp_path, "does not exist", f"--source={tmp_path / 'gone'}", dest)
    refused(tmp_path, "holds no images", f"--source={tmp_path / 'none'}", dest)
    refused(tmp_path, "points outside", f"--source={outside}", dest)
    refused(tmp_path, "takes no --source", f"--source={source}", "check", source)


def test_a_path_that_is_called_digits_has_to_be_told_from_the_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "here", {"digits/1.png": png(1)}))
    refused(tmp_path, r"--source=digits means .* there is a digits here: give \./digits", "--source=digits", f"--dest={tmp_path / 'out.zip'}")
    assert len(ImageFolderDataset(convert("./digits", tmp_path / "out.zip"))) == 1


def test_a_file_that_cannot_be_read_is_not_the_last_word(tmp_path, capsys):
    source = write_folder(tmp_path / "source", {"1.png": png(1), "2.png": b"-", "3.png": png(3)[:200], "4.png": b"-", "5.png": b"-"})
    dest = f"--dest={tmp_path / 'out.zip'}"
    refused(tmp_path, r"2\.png is not an image .*; `dataset_tool\.py check .*source` finds all that cannot be read", f"--source={source}", dest)
    with pytest.raises(UserError, match="cannot be trained on"):
        tool("check", source)
    assert {"2.png", "3.png", "4.png", "5.png"} <= set(capsys.readouterr().out.splitlines())


# check


def test_check_prints_a_table(tmp_path, capsys):
    files = pngs(5)
    path = write_zip(tmp_path / "set.zip", {**files, "notes.txt": b"-"}, [[name, index % 2] for index, name in enumerate(files)])
    tool("check", path)
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (["16x16", "5"], ["RGB", "5"], ["0", "3"], ["1", "2"], ["This", "set", "can", "be", "trained", "on."]):
        assert row in said
    assert any("notes.txt)" in row for row in said)


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        (
            {"00000/img00000002.png": b"-", "00000/img00000003.png": png(3)[:200]},
            None,
            r"2 image\(s\) cannot be read \(first: .*img00000002\.png, .*3\.png\)",
        ),
        ({"00000/img00000002.png": png(0, size=(8, 8))}, None, r"1 image\(s\) have another size than 16x16 \(first: .*img00000002\.png 8x8"),
        ({"00000/img00000000.png": png(0, mode="LA")}, None, r"1 image\(s\) have another colour mode than RGB \(first: .*img00000000\.png LA"),
        ({"00000/img00000002.png": png(0, size=(16, 9))}, None, r"1 image\(s\) are 16x9 pixels, not of a size up to 8192 that can be halved"),
        (
            {f"00000/img0000000{i}.png": png(0, size=(17 + 2 * i, 9)) for i in range(4)},
            None,
            r"4 image\(s\) are of 4 sizes \(first: 17x9, 19x9, 21x9\), not of a size up to 8192 that can be halved",
        ),
        ({"00000/img00000002.png": encode(random_image(1).convert("P"))}, None, r"1 image\(s\) have the colour mode P"),
        ({}, [["00000/img00000000.png", 0]], "no label for 4 of 5"),
        ({}, [["x.png", 0]], "do not exist"),
    ],
)
def test_check_finds_what_is_in_the_way(tmp_path, capsys, changes, labels, message):
    path = write_zip(tmp_path / "set.zip", {**pngs(5), **changes}, labels)
    with pytest.raises(UserError, match="cannot be trained on"):
        tool("check", path)
    said = capsys.readouterr().out
    problems = "\n".join(line for line in said.splitlines() if line.startswith("problem: "))
    assert re.search(message, problems)


def test_check_of_unlabelled_and_empty_sets(tmp_path, capsys):
    tool("check", write_folder(tmp_path / "classes", {"a/1.png": png(1), "b/2.png": png(2)}))
    said = capsys.readouterr().out
    assert "(none)" in said and "sub-folders that look like classes" in said
    with pytest.raises(UserError, match="holds no images"):
        tool("check", write_folder(tmp_path / "empty", {"a.txt": b"-"}))


def test_as_a_script(tmp_path):
    def script(*args):
        return subprocess.run([sys.executable, str(ROOT / "dataset_tool.py"), *args], cwd=tmp_path, capture_output=True, text=True)

    write_folder(tmp_path / "source", {"1.png": png(1), "2.png": png(2)})
    done = script("--source=source", "--dest=out.zip")
    assert done.returncode == 0 and "out.zip: 2 images, 16x16 RGB" in done.stdout
    assert script("check", "out.zip").returncode == 0
    (tmp_path / "source" / "2.png").write_bytes(png(2)[:100])
    failed = script("check", "source")
    assert failed.returncode == 2 and failed.stderr.startswith("Error: source cannot be trained on: 1 image(s) cannot be read")
    failed = script("--source=source", "--dest=new.zip")
    assert failed.returncode == 2 and failed.stderr.splitlines()[-1].startswith("Error: source/2.png is") and not (tmp_path / "new.zip").exists()
    failed = script("--source=source", "--dest=new.zip", "--resize-filter=cubic")
    assert failed.returncode == 2 and "resize-filter" in failed.stderr
