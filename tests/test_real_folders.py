"""Folders as they come from cameras, disks and other systems: pictures end upright, and what is no picture of the user's is not trained on."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from image_sets import convert, encode, png, pngs, random_image, refused, tool, write_folder, write_zip
from PIL import ExifTags, Image, ImageOps

from dnnlib import UserError
from dnnlib.signals import STOP_SIGNALS
from training import dataset_writer
from training.dataset import ImageFolderDataset, load_array
from training.dataset_dest import left_overs
from training.image_store import SYSTEM_FOLDERS, FolderStore, ZipStore, load_pixels, open_image, upright

ROOT = pathlib.Path(__file__).parent.parent
TURNED = 6  # EXIF's Orientation of a phone that is held upright: to be turned right by a quarter


def photo(seed, orientation, size=(16, 16), kind="png", **options):
    """A file of random pixels with an orientation in its EXIF data."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(random_image(seed, size=size), kind, exif=exif, **options)


def pixels(image):
    return np.asarray(image.convert("RGB"))


# Upright.


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_end_as_pillow_turns_them(kind, orientation):
    """All eight orientations of the standard; another number turns nothing."""
    opened = open_image(photo(0, orientation, size=(6, 4), kind=kind), "it")
    load_pixels(opened, "it")
    expected = ImageOps.exif_transpose(opened)
    assert upright(opened).size == ((4, 6) if orientation in (5, 6, 7, 8) else (6, 4))
    np.testing.assert_array_equal(pixels(upright(opened)), pixels(expected))


def test_a_phone_s_photos_are_converted_upright(tmp_path):
    source = write_folder(tmp_path / "photos", {"a.png": photo(0, TURNED), "b.png": photo(1, 1)})
    turned, plain = load_array(ImageFolderDataset(convert(source, tmp_path / "out.zip")))
    np.testing.assert_array_equal(turned, np.rot90(pixels(random_image(0)), -1).transpose(2, 0, 1))
    np.testing.assert_array_equal(plain, pixels(random_image(1)).transpose(2, 0, 1))


def test_damaged_exif_turns_nothing(tmp_path):
    whole = photo(0, TURNED, kind="jpeg")
    start = whole.index(b"Exif\0\0") + 6
    source = write_folder(tmp_path / "photos", {"a.jpg": whole[:start] + b"\xff" * 10 + whole[start + 10 :]})
    (array,) = load_array(ImageFolderDataset(convert(source, tmp_path / "out.zip")))
    with Image.open(source / "a.jpg") as image:
        np.testing.assert_array_equal(array, pixels(image).transpose(2, 0, 1))


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_check_counts_what_a_camera_has_turned(tmp_path, capsys, write):
    """Training reads pixels as they are stored."""
    path = write(tmp_path / "set.zip", {f"{index}.png": photo(index, orientation) for index, orientation in enumerate([0, 1, 3, TURNED])})
    tool("check", path)
    said = capsys.readouterr().out
    assert "note: 2 image(s) are stored turned or mirrored" in said and "(first: 2.png, 3.png)" in said and said.endswith("can be trained on.\n")
    np.testing.assert_array_equal(ImageFolderDataset(path)[3][0], pixels(random_image(3)).transpose(2, 0, 1))
    tool("check", convert(path, tmp_path / "out.zip"))
    assert "turned" not in capsys.readouterr().out


def test_pillow_does_not_warn_of_large_pictures_beside_the_errors(tmp_path):
    """Its warning names no file. Nor does the filter hide what Pillow refuses."""
    code = (
        "from PIL import Image\nfrom training.image_store import open_image\n"
        "data = open('a.png', 'rb').read()\nImage.MAX_IMAGE_PIXELS = 200\nopen_image(data, 'a.png')\n"
        "Image.MAX_IMAGE_PIXELS = 100\nopen_image(data, 'a.png')"
    )
    (tmp_path / "a.png").write_bytes(png(0))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "Warning" not in done.stderr and done.stderr.splitlines()[-1].startswith("dnnlib.errors.UserError: a.png is not an image")


# What lies in a folder.


def test_system_folders_hold_no_images(tmp_path):
    source = write_folder(tmp_path / "disk", pngs(3) | {f"{name}/deep/{index}.png": png(index) for index, name in enumerate(SYSTEM_FOLDERS)})
    assert FolderStore(source).names == sorted(pngs(3))


def test_a_folder_that_only_root_may_list_is_not_listed(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "disk", pngs(2))
    (source / "lost+found").mkdir()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(os.path.basename(path)) or scandir(path))
    assert len(FolderStore(source).names) == 2 and "lost+found" not in listed


def test_links_to_folders_are_followed(tmp_path, capsys):
    """As subsets of a large collection are made. The same folder may be there twice."""
    collection = write_folder(tmp_path / "collection", {f"{name}/{index}.png": png(index) for name in "ab" for index in range(2)})
    subset = tmp_path / "subset"
    subset.mkdir()
    for link, target in (("first", "a"), ("second", "b"), ("third", "b")):
        (subset / link).symlink_to(collection / target)
    assert FolderStore(subset).names == [f"{link}/{index}.png" for link in ("first", "second", "third") for index in range(2)]
    convert(subset, tmp_path / "out.zip")
    assert "3 sub-folders" in capsys.readouterr().out


@pytest.mark.parametrize("target", [".", "..", "sub"])
def test_a_link_into_a_circle_is_refused(tmp_path, target):
    source = write_folder(tmp_path / "top" / "source", {"sub/0.png": png(0)})
    (source / "sub" / "link").symlink_to({".": source / "sub", "..": tmp_path / "top", "sub": source}[target])
    with pytest.raises(UserError, match=r"link.* leads back to .*, in which it lies; remove the link"):
        FolderStore(source)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems hold names to be Unicode")
def test_names_that_are_no_unicode(tmp_path, capsys):
    source = write_folder(tmp_path / "old", {"cafe/0.png": png(0), "the/0.png": png(1)})
    os.rename(source / "cafe", os.fsencode(source) + b"/caf\xe9")
    assert len(ImageFolderDataset(source).fingerprint()) == 64
    convert(source, tmp_path / "out.zip")
    assert "label 0 = caf\\udce9: 1" in capsys.readouterr().out


def test_files_of_other_kinds_are_counted(tmp_path, capsys):
    source = write_folder(tmp_path / "phone", pngs(2) | {"a.HEIC": b"-", "b.heic": b"-", "c.mov": b"-", "README": b"-"})
    convert(source, tmp_path / "out.zip")
    assert "files of other kinds, passed over: .heic: 2, no suffix: 1, .mov: 1\n" in capsys.readouterr().out
    convert(tmp_path / "out.zip", tmp_path / "again.zip")
    assert "passed over" not in capsys.readouterr().out


def test_a_message_about_a_large_set_does_not_read_it_all(tmp_path, monkeypatch):
    """Nor does a file that cannot be read take the place of what is to be said."""
    monkeypatch.setattr(dataset_writer, "SURVEY_IMAGES", 3)
    source = write_folder(tmp_path / "photos", {"0.png": png(0), "1.png": png(1, size=(8, 8)), "2.png": b"-", "3.png": png(3)})
    expected = r"1\.png comes out as 8x8 pixels, .* in the first 2: 16x16: 1, 8x8: 1\)"
    refused(tmp_path, expected, "--source", source, "--dest", tmp_path / "out.zip")


# Where the set goes.


@pytest.mark.parametrize("kind", ["link", "working folder"])
def test_an_empty_folder_is_filled_where_it_cannot_be_replaced(tmp_path, monkeypatch, kind):
    """A link to a folder, or the place of a volume, for which `.` stands here: neither can be renamed onto."""
    source, place = write_folder(tmp_path / "source", pngs(3), labels=[[name, 0] for name in pngs(3)]), tmp_path / "place"
    place.mkdir()
    dest = "."
    if kind == "link":
        dest = tmp_path / "link"
        dest.symlink_to(place)
    monkeypatch.chdir(place)
    convert(source, dest)
    assert len(ImageFolderDataset(place, use_labels=True)) == 3 and sorted(os.listdir(place)) == ["00000", "dataset.json"]
    assert kind != "link" or dest.is_symlink()


def test_what_a_killed_conversion_left_in_a_folder_is_not_in_the_way(tmp_path):
    """Nor is what a new disk holds."""
    source, place = write_folder(tmp_path / "source", pngs(3)), tmp_path / "place"
    write_folder(place, {".place.0123abcd.tmp/00000/img00000000.png": b"-", "lost+found/x": b"-"})
    (tmp_path / "link").symlink_to(place)
    convert(source, tmp_path / "link")
    assert sorted(os.listdir(place)) == ["00000", "dataset.json", "lost+found"]


def test_a_filled_folder_is_emptied_again_after_an_error(tmp_path, monkeypatch):
    source, place = write_folder(tmp_path / "source", pngs(3)), tmp_path / "place"
    place.mkdir()
    rename = os.rename

    def failing(old, new):
        if os.path.basename(new) == "dataset.json":
            raise OSError(28, "No space left on device")
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    refused(tmp_path, "cannot be written: No space left on device", "--source", source, "--dest", place)
    assert os.listdir(place) == []


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["out.zip", "out"])
def test_a_link_as_destination_stays_a_link(tmp_path, name, there):
    """The set goes to where it leads, as where the disk with the room is."""
    source, place = write_folder(tmp_path / "source", pngs(3)), tmp_path / "disk" / name
    place.parent.mkdir()
    if there and name == "out":
        place.mkdir()
    elif there:
        convert(write_folder(tmp_path / "older", pngs(1)), place)
    link = tmp_path / name
    link.symlink_to(place)
    convert(source, link)
    assert link.is_symlink() and not place.is_symlink() and len(ImageFolderDataset(place)) == 3
    assert os.listdir(place.parent) == [name]


def test_what_a_killed_conversion_left_is_named(tmp_path, capsys):
    """And not removed: another conversion may be writing it."""
    source = write_folder(tmp_path / "source", pngs(1))
    for dest, old in (("out.zip", ".out.0123abcd.tmp.zip"), ("out", ".out.0123abcd.tmp")):
        others = [tmp_path / other for other in (".out.more.0123abcd.tmp.zip", ".out.tmp.zip", ".other.0123abcd.tmp")]
        for path in (tmp_path / old, *others):
            path.write_bytes(b"-")
        assert left_overs(tmp_path / dest) == [tmp_path / old]
        convert(source, tmp_path / dest)
        assert f"{tmp_path / old} is what a killed conversion has left; remove it" in capsys.readouterr().out
    assert left_overs(tmp_path / "absent" / "out.zip") == []


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("dest", ["out.zip", "deep/out"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_an_ended_conversion_leaves_nothing(tmp_path, dest, name):
    number = getattr(signal, name)
    if number not in STOP_SIGNALS:
        pytest.skip(f"{name} was ignored from the beginning, as under nohup, and ends nothing")
    source = write_folder(tmp_path / "source", pngs(3))
    before, load = sorted(tmp_path.rglob("*")), dataset_writer.load_pixels

    def ended_at_the_last(image, where):
        load(image, where)
        if "00000002" in where:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.setattr(dataset_writer, "load_pixels", ended_at_the_last)
        tool("--source", source, "--dest", tmp_path / dest)
    assert leaving.value.code == 128 + number and signal.getsignal(number) is handler
    assert sorted(tmp_path.rglob("*")) == before


# Zips.


def test_a_zip_that_was_only_touched_is_the_same(tmp_path):
    """So is one that was copied back. What it holds is compared then, not its time."""
    path = write_zip(tmp_path / "set.zip", pngs(3))
    dataset = ImageFolderDataset(path)
    first = dataset[0][0]
    os.utime(path, (0, 0))
    dataset.check_unchanged()
    os.utime(path, (9, 9))
    dataset.close()
    np.testing.assert_array_equal(dataset[0][0], first)
    write_zip(path, dict(reversed(pngs(3).items())))  # the same members at other places
    os.utime(path, (0, 0))
    dataset.check_unchanged()
    np.testing.assert_array_equal(dataset[0][0], first)


@pytest.mark.parametrize("change", ["bytes", "torn", "gone"])
def test_a_zip_that_holds_something_else_is_not(tmp_path, change):
    path = write_zip(tmp_path / "set.zip", pngs(3))
    dataset = ImageFolderDataset(path)
    if change == "bytes":  # of the same names and sizes
        write_zip(path, {**pngs(3), "00000/img00000001.png": png(1)[:-1] + b"-"})
    elif change == "torn":
        path.write_bytes(path.read_bytes()[:-30])
    else:
        path.unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"set\.zip has changed since"):
            dataset.check_unchanged()


def test_a_colon_in_a_name_points_nowhere(tmp_path):
    name = "Screenshot 14:25:36.png"
    assert ZipStore(write_zip(tmp_path / "set.zip", {name: png(0)})).names == [name]
    for drive in ("C:/a.png", "c:a.png"):
        with pytest.raises(UserError, match="points outside of the zip"):
            ZipStore(write_zip(tmp_path / "set.zip", {drive: png(0)}))
