"""ImageFolderDataset: equal to the golden numbers, indifferent to how files are kept, and clear about every kind of broken set."""

import json
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from image_sets import encode, png, pngs, random_image, write_folder, write_zip
from PIL import Image

from dnnlib import UserError
from training.dataset import ImageFolderDataset, load_array

DATA = pathlib.Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "dataset_small.json").read_text())


def golden_dataset(case, **options):
    values = dict(part.split("=") for part in case.split(","))
    max_size = None if values["max_size"] == "None" else int(values["max_size"])
    return ImageFolderDataset(
        DATA / "dataset_small.zip", use_labels=True, max_size=max_size, xflip=values["xflip"] == "True", random_seed=int(values["seed"]), **options
    )


@pytest.mark.parametrize("case", GOLDEN)
def test_equals_golden(case):
    dataset, expected = golden_dataset(case), GOLDEN[case]
    details = [dataset.get_details(index) for index in range(len(dataset))]
    items = [dataset[index] for index in range(len(dataset))]
    assert len(dataset) == expected["len"]
    assert [entry.raw_idx for entry in details] == expected["raw_idx"]
    assert [int(entry.xflip) for entry in details] == expected["xflip"]
    assert [int(entry.raw_label) for entry in details] == expected["labels"]
    assert dataset.label_dim == expected["label_dim"]
    assert [int(label.argmax()) for _, label in items] == expected["labels"]
    assert [int(image.sum()) for image, _ in items] == expected["pixel_sum"]
    assert [image[:, 0, 0].tolist() for image, _ in items] == expected["first_pixels"]
    assert all(label.sum() == 1 and label.dtype == np.float32 for _, label in items)
    assert all(image.dtype == np.uint8 and list(image.shape) == dataset.image_shape for image, _ in items)


def test_flipped_half_mirrors_first_half():
    dataset = golden_dataset("max_size=9,xflip=True,seed=3")
    for index in range(9):
        np.testing.assert_array_equal(dataset[index + 9][0], dataset[index][0][:, :, ::-1])


@pytest.mark.parametrize("case", GOLDEN)
def test_load_array_holds_every_item(case):
    dataset = golden_dataset(case)
    images = load_array(dataset)
    rows = np.searchsorted(np.unique(dataset.raw_indices), dataset.raw_indices)
    for index in range(len(dataset)):
        image = images[rows[index]]
        np.testing.assert_array_equal(dataset[index][0], image[:, :, ::-1] if dataset.flips[index] else image)


def test_properties():
    dataset = golden_dataset("max_size=9,xflip=True,seed=3")
    assert (dataset.name, dataset.image_shape, dataset.num_channels, dataset.resolution) == ("dataset_small", [3, 16, 16], 3, 16)
    assert (dataset.label_shape, dataset.label_dim, dataset.has_labels, dataset.has_onehot_labels) == ([5], 5, True, True)
    plain = ImageFolderDataset(DATA / "dataset_small.zip")
    assert (plain.label_shape, plain.label_dim, plain.has_labels, plain.has_onehot_labels) == ([0], 0, False, False)
    assert plain[0][1].shape == (0,) and plain.labels_in_file


def test_folder_and_compressed_zip_equal_stored_zip(tmp_path):
    files = pngs(5)
    labels = [[name, index] for index, name in enumerate(files)]
    sets = [
        ImageFolderDataset(path, use_labels=True)
        for path in (
            write_zip(tmp_path / "stored.zip", files, labels),
            write_zip(tmp_path / "deflated.zip", files, labels, method=zipfile.ZIP_DEFLATED),
            write_folder(tmp_path / "folder", files, labels),
        )
    ]
    assert [dataset.name for dataset in sets] == ["stored", "deflated", "folder"]
    assert len({dataset.fingerprint() for dataset in sets}) == 1
    for other in sets[1:]:
        for index in range(5):
            np.testing.assert_array_equal(sets[0][index][0], other[index][0])
            np.testing.assert_array_equal(sets[0][index][1], other[index][1])


def test_fingerprint_follows_content_selection_and_labels(tmp_path):
    files = pngs(6)
    labels = [[name, index] for index, name in enumerate(files)]
    path = write_zip(tmp_path / "a.zip", files, labels)
    other_pixels = write_zip(tmp_path / "b.zip", {**files, "00000/img00000003.png": png(99)}, labels)
    other_labels = write_zip(tmp_path / "c.zip", files, labels[:-1] + [[labels[-1][0], 0]])
    prints = [
        ImageFolderDataset(path).fingerprint(),
        ImageFolderDataset(path, use_labels=True).fingerprint(),
        ImageFolderDataset(path, xflip=True).fingerprint(),
        ImageFolderDataset(path, max_size=3).fingerprint(),
        ImageFolderDataset(path, max_size=3, random_seed=1).fingerprint(),
        ImageFolderDataset(other_pixels).fingerprint(),
        ImageFolderDataset(other_labels, use_labels=True).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert ImageFolderDataset(other_labels).fingerprint() == prints[0]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_channels(tmp_path, mode, channels):
    dataset = ImageFolderDataset(write_zip(tmp_path / "set.zip", pngs(2, mode=mode)))
    pixels = np.asarray(random_image(1, mode)).reshape(16, 16, channels)
    assert dataset.num_channels == channels
    np.testing.assert_array_equal(dataset[1][0], pixels.transpose(2, 0, 1))


def test_jpeg_is_read_and_other_files_are_not_counted(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 10, 60))
    files = {"b.jpg": encode(image, "jpeg"), "a.PNG": encode(image), "notes.txt": b"-", "._a.png": b"-", "__MACOSX/a.png": b"-"}
    dataset = ImageFolderDataset(write_zip(tmp_path / "set.zip", files))
    assert len(dataset) == 2
    assert np.abs(dataset[1][0].astype(int) - dataset[0][0]).max() <= 3


def test_vector_labels_and_backslashes(tmp_path):
    files = pngs(3)
    vectors = [[0.5, -1.0], [0.0, 2.0], [1.0, 1.5]]
    labels = [[name.replace("/", "\\"), vector] for name, vector in zip(files, vectors)]
    dataset = ImageFolderDataset(write_zip(tmp_path / "set.zip", files, labels), use_labels=True)
    assert dataset.label_dim == 2 and dataset.has_labels and not dataset.has_onehot_labels
    np.testing.assert_array_equal([dataset.get_label(index) for index in range(3)], vectors)


def test_pickle_and_fork_read_on_their_own():
    dataset = golden_dataset("max_size=None,xflip=False,seed=0")
    before = dataset[3][0]
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[3][0], before)
    assert copy.fingerprint() == dataset.fingerprint()
    store = dataset.store
    opened = store._zip
    store._owner = os.getpid() + 1  # as a forked worker finds it
    np.testing.assert_array_equal(dataset[3][0], before)
    assert store._zip is not opened
    dataset.close()
    np.testing.assert_array_equal(dataset[3][0], before)


def test_the_length_of_labels_is_counted_once():
    """Every item asks for it; a look through all labels would take longer than reading an image."""
    dataset = golden_dataset("max_size=None,xflip=False,seed=0")
    labels = dataset.get_labels(np.arange(5))
    dataset._raw_labels = dataset._raw_labels[:5]  # of which the length could not be counted
    assert dataset.label_dim == labels.shape[1] == 5
    np.testing.assert_array_equal(dataset.get_labels(np.arange(5)), labels)


def test_only_first_image_is_read_at_construction(tmp_path):
    files = pngs(4)
    files["00000/img00000002.png"] = b"no image"
    dataset = ImageFolderDataset(write_zip(tmp_path / "set.zip", files))
    assert dataset[1][0].shape == (3, 16, 16)
    with pytest.raises(UserError, match=r"00000/img00000002\.png"):
        dataset[2]


# Broken sets: the message names the file and what is wrong with it.


def broken_set(tmp_path, files, labels=None):
    return ImageFolderDataset(write_zip(tmp_path / "set.zip", files, labels), use_labels=labels is not None)


def test_another_look_at_files_that_are_open_reads_none_again(tmp_path, monkeypatch):
    """As the metrics of a training take one: mirrored, or whole where the training has a part."""
    dataset = ImageFolderDataset(write_folder(tmp_path / "pics", pngs(3, size=(8, 8))))
    before, reads, read_bytes = dataset.fingerprint(), [], pathlib.Path.read_bytes
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: reads.append(path.name) or read_bytes(path))
    again = ImageFolderDataset(tmp_path / "pics", xflip=True, store=dataset.store)
    assert len(again) == 6 and again.fingerprint() != before and reads == ["img00000000.png"]  # the first one, for its size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(0, size=(32, 32)), "is 32x32 with 3 channel"),
        (png(0, mode="L"), "is 16x16 with 1 channel"),
        (png(0)[:300], "torn image"),
        (png(0)[:20], "not an image|torn"),
        (encode(random_image(0).convert("P")), "colour mode P"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n", "not an image"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_odd_image_in_the_middle(tmp_path, data, message, kind):
    files = pngs(5)
    files["00000/img00000003.png"] = data
    path = write_zip(tmp_path / "set.zip", files) if kind == "zip" else write_folder(tmp_path / "set", files)
    dataset = ImageFolderDataset(path)
    for read in (lambda: dataset[3], lambda: load_array(dataset)):
        with pytest.raises(UserError, match=rf"img00000003\.png.*({message})"):
            read()


def test_damaged_bytes_in_a_zip(tmp_path):
    path = write_zip(tmp_path / "set.zip", pngs(3))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("00000/img00000001.png").header_offset
    data[start + 400] ^= 255
    path.write_bytes(data)
    dataset = ImageFolderDataset(path)
    with pytest.raises(UserError, match=r"cannot read 00000/img00000001\.png .*CRC"):
        dataset[1]


def test_torn_missing_and_foreign_paths(tmp_path):
    path = write_zip(tmp_path / "set.zip", pngs(3))
    torn = tmp_path / "torn.zip"
    torn.write_bytes(path.read_bytes()[:1500])
    (tmp_path / "set.tar").write_bytes(b"-")
    with pytest.raises(UserError, match=r"torn\.zip is not a whole zip"):
        ImageFolderDataset(torn)
    with pytest.raises(UserError, match=r"absent\.zip does not exist"):
        ImageFolderDataset(tmp_path / "absent.zip")
    with pytest.raises(UserError, match=r"set\.tar is neither a folder nor a \.zip"):
        ImageFolderDataset(tmp_path / "set.tar")
    with pytest.raises(UserError, match="holds no images"):
        ImageFolderDataset(write_zip(tmp_path / "empty.zip", {"readme.txt": b"-"}))


@pytest.mark.parametrize("name", ["../img.png", "/img.png", "a/../../img.png", "..\\img.png", "C:\\img.png"])
def test_names_that_point_outside_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="points outside"):
        broken_set(tmp_path, {**pngs(1), name: png(1)})


@pytest.mark.parametrize("size", [(16, 9), (25, 25), (2, 2)])
def test_odd_resolution(tmp_path, size):
    with pytest.raises(UserError, match=rf"is {size[0]}x{size[1]} pixels; images must be of a size up to 8192 that can be halved"):
        broken_set(tmp_path, pngs(1, size=size))


def test_expected_resolution(tmp_path):
    path = write_zip(tmp_path / "set.zip", pngs(1))
    assert ImageFolderDataset(path, resolution=16).resolution == 16
    with pytest.raises(UserError, match="32x32 is asked for"):
        ImageFolderDataset(path, resolution=32)
    path = write_zip(tmp_path / "wide.zip", pngs(1, size=(24, 16)))
    dataset = ImageFolderDataset(path, resolution=[16, 24])
    assert (dataset.resolution, dataset.start_grid, dataset.image_shape) == (16, (4, 6), [3, 16, 24])
    for asked, said in ((16, "16x16"), ([24, 16], "16x24"), ([16], r"\[16\]")):
        with pytest.raises(UserError, match=f"is 24x16 pixels, but {said} is asked for"):
            ImageFolderDataset(path, resolution=asked)


@pytest.mark.parametrize("max_size", [0, -1, 24])
def test_max_size_out_of_range(max_size):
    with pytest.raises(UserError, match=rf"max_size .* is {max_size}, .* 1 to 23"):
        ImageFolderDataset(DATA / "dataset_small.zip", max_size=max_size)


NAMES = list(pngs(3))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("null", "--cond needs labels.*there are none"),
        ([[NAMES[0], 0]], r"no label for 2 of 3 images \(first: .*img00000001\.png"),
        ([[name, 0] for name in [*NAMES, "x.png"]], r"names 1 of 4 files that do not exist \(first: x\.png"),
        ([[NAMES[0], 0], [NAMES[1], None], [NAMES[2], 1]], "no label for 1 of 3"),
        ([[NAMES[0], 0], [NAMES[1], -1], [NAMES[2], 1]], "holds the label -1"),
        ([[NAMES[0], 0.5], [NAMES[1], 1], [NAMES[2], 1]], "holds the label 0.5"),
        ([[NAMES[0], [1, 2]], [NAMES[1], 1], [NAMES[2], 1]], "mixes labels"),
        ([[name, "cat"] for name in NAMES], "holds labels such as 'cat'"),
        ([["a", 1, 2]], "must hold"),
        ("everything", "must hold"),
    ],
)
def test_broken_labels(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        broken_set(tmp_path, pngs(3), labels)


def test_no_label_file_or_no_json(tmp_path):
    path = write_zip(tmp_path / "set.zip", pngs(2))
    with pytest.raises(UserError, match=r"--cond needs labels.*no dataset\.json"):
        ImageFolderDataset(path, use_labels=True)
    path = write_zip(tmp_path / "torn.zip", {**pngs(2), "dataset.json": b'{"labels": [['})
    with pytest.raises(UserError, match="not a JSON file"):
        ImageFolderDataset(path, use_labels=True)
    assert len(ImageFolderDataset(path)) == 2


def test_index_out_of_range():
    dataset = ImageFolderDataset(DATA / "dataset_small.zip")
    with pytest.raises(IndexError):
        dataset[23]
