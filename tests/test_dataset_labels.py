"""dataset.json as people and systems write it: where it lies, how names and text are encoded, class names, and entries of images that are gone."""

import json
import unicodedata
import zipfile

import numpy as np
import pytest
from image_sets import convert, labels_of, png, refused, tool, write_folder, write_zip

from dnnlib import UserError
from training.dataset import ImageFolderDataset
from training.dataset_sources import class_order

CAFE = "caf\u00e9.png"


def json_of(path):
    """The whole dataset.json of a zip."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def numbers_of(path):
    return [label for _, label in labels_of(path)]


def loaded(path):
    dataset = ImageFolderDataset(path, use_labels=True)
    return dataset.get_labels(np.arange(len(dataset))).argmax(axis=1).tolist()


# Where it lies.


@pytest.mark.parametrize("place", ["photos/", "photos/all/"])
def test_labels_of_a_zip_made_of_a_whole_folder(tmp_path, capsys, place):
    """Its labels are not those that its sub-folders would give."""
    files = {f"{place}x/a.png": png(0), f"{place}y/b.png": png(1)}
    labels = json.dumps({"labels": [["x/a.png", 1], ["y/b.png", 0]]}).encode()
    path = write_zip(tmp_path / "photos.zip", {**files, f"{place}dataset.json": labels})
    assert numbers_of(convert(path, tmp_path / "out.zip")) == loaded(path) == [1, 0]
    assert f"from {place}dataset.json" in (said := capsys.readouterr().out) and "passed over" not in said
    tool("check", path)
    assert "passed over" not in capsys.readouterr().out


def test_labels_of_a_part_of_the_images_are_not_those_of_the_set(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"x/a.png": png(0), "y/b.png": png(1), "x/dataset.json": b'{"labels": [["a.png", 1]]}'})
    assert numbers_of(convert(path, tmp_path / "out.zip")) == [0, 1]
    assert not ImageFolderDataset(path).labels_in_file


# How it is written.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_text_as_windows_writes_it(tmp_path, encoding):
    text = json.dumps({"labels": [[CAFE, 1], ["b.png", 0]]}, ensure_ascii=False)
    files = {"b.png": png(0), CAFE: png(1), "dataset.json": text.encode(encoding)}
    assert loaded(write_zip(tmp_path / "set.zip", files)) == loaded(write_folder(tmp_path / "set", files)) == [0, 1]


@pytest.mark.parametrize(("in_zip", "in_json"), [("NFD", "NFC"), ("NFC", "NFD"), ("cp437", "NFC")])
def test_names_as_macos_writes_them(tmp_path, in_zip, in_json):
    def form(name, kind):
        return name.encode().decode("cp437") if kind == "cp437" else unicodedata.normalize(kind, name)

    labels = [["b.png", 0], [form(CAFE, in_json), 1]]
    path = write_zip(tmp_path / "set.zip", {"b.png": png(0), form(CAFE, in_zip): png(1)}, labels)
    assert loaded(path) == numbers_of(convert(path, tmp_path / "out.zip")) == [0, 1]
    tool("check", path)


def test_two_files_that_a_name_could_mean_are_not_guessed_at(tmp_path):
    files = {unicodedata.normalize("NFD", CAFE): png(0), CAFE.encode().decode("cp437"): png(1)}
    with pytest.raises(UserError, match="names 1 of 1 files that do not exist"):
        ImageFolderDataset(write_zip(tmp_path / "set.zip", files, [[CAFE, 0]]), use_labels=True)


# Class names.


def test_names_of_classes_are_kept(tmp_path, capsys):
    files = {f"class{index:02d}/0.png": png(index, size=(4, 4)) for index in range(40)}
    first = convert(write_folder(tmp_path / "source", files), tmp_path / "first.zip")
    said = capsys.readouterr().out
    assert json_of(first)["label_names"] == [f"class{index:02d}" for index in range(40)]
    assert "and 10 more labels; their names are in its dataset.json" in said
    again = convert(first, tmp_path / "again.zip")
    assert again.read_bytes() == first.read_bytes() and "label 0 = class00: 1" in capsys.readouterr().out
    assert list(json_of(convert(first, tmp_path / "without.zip", "--labels=none"))) == ["labels"]


@pytest.mark.parametrize("names", [["cat"], "cat", [1, 2], None])
def test_odd_class_names_do_no_harm(tmp_path, names):
    content = {"labels": [["a.png", 0], ["b.png", 1]], "label_names": names}
    path = write_zip(tmp_path / "set.zip", {"a.png": png(0), "b.png": png(1), "dataset.json": json.dumps(content).encode()})
    assert loaded(convert(path, tmp_path / "out.zip")) == [0, 1]


def test_numbered_folders_are_numbered_in_their_order(tmp_path, capsys):
    source = write_folder(tmp_path / "source", {f"{name}/0.png": png(name, size=(4, 4)) for name in range(12)})
    path = convert(source, tmp_path / "out.zip")
    assert json_of(path)["label_names"] == [str(number) for number in range(12)] and sorted(numbers_of(path)) == list(range(12))
    assert "in the order of their numbers" in (said := capsys.readouterr().out) and "label 2 = 2: 1" in said


def test_order_of_classes():
    assert class_order({"10", "2", "01", "0", "1"}) == (["0", "01", "1", "2", "10"], "numbers")
    assert class_order({"10", "2", "x"}) == (["10", "2", "x"], "names")
    assert class_order({"9" * 5000, "1" + "0" * 5000, "\u00b2"}) == (sorted(["9" * 5000, "1" + "0" * 5000, "\u00b2"]), "names")
    assert class_order({"9" * 5000, "1" + "0" * 5000}) == (["9" * 5000, "1" + "0" * 5000], "numbers")


# Entries and images that do not match.


def test_entries_of_deleted_images_are_left_out(tmp_path, capsys):
    labels = [["a.png", 1], ["gone.png", 7], ["b.png", 0]]
    path = write_zip(tmp_path / "set.zip", {"a.png": png(0), "b.png": png(1)}, labels)
    assert numbers_of(convert(path, tmp_path / "out.zip")) == [1, 0]
    assert "from dataset.json, 1 of its entries left out, whose files do not exist (first: gone.png)" in capsys.readouterr().out
    strict = (f"--source={path}", f"--dest={tmp_path / 'new.zip'}", "--labels=json")
    refused(tmp_path, r"names 1 of 3 files that do not exist \(first: gone\.png\)", *strict)


def test_entries_that_all_miss_are_a_mistake(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"a.png": png(0), "b.png": png(1)}, [["pics/a.png", 1], ["pics/b.png", 0]])
    refused(tmp_path, r"names 2 of 2 files that do not exist \(first: pics/a\.png", f"--source={path}", f"--dest={tmp_path / 'out.zip'}")
