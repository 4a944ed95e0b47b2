"""CIFAR-10's and MNIST's archives and scikit-learn's digits through the conversion tool: right pixels, right labels, and no code run."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from image_sets import convert, labels_of, refused

from training.dataset import ImageFolderDataset, load_array
from training.dataset_archives import enlarge, load_digits, read_cifar_batch


def test_digits(tmp_path):
    path = convert("digits", tmp_path / "a.zip")
    assert path.read_bytes() == convert("digits", tmp_path / "b.zip").read_bytes()
    dataset = ImageFolderDataset(path, use_labels=True)
    assert (len(dataset), dataset.image_shape, dataset.label_dim) == (1797, [1, 32, 32], 10)
    assert load_array(dataset).max() > 240
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    assert infos[0].filename == "00000/img00000000.png" and infos[-1].filename == "dataset.json"
    assert all(info.compress_type == zipfile.ZIP_STORED for info in infos)


def test_digits_keep_what_the_small_images_show():
    from sklearn import datasets

    images, labels = load_digits()
    small = datasets.load_digits()
    means = images[:, 4:28, 4:28].reshape(-1, 8, 3, 8, 3).mean(axis=(2, 4))
    assert np.corrcoef(means.ravel(), small.images.ravel())[0, 1] > 0.98
    np.testing.assert_array_equal(labels, small.target)
    assert max(images[:, :3].max(), images[:, :, -3:].max()) <= 2


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlarging_keeps_constants_ramps_and_symmetry(factor):
    np.testing.assert_array_equal(enlarge(np.full([1, 5, 4], 16.0), factor), np.full([1, 5 * factor, 4 * factor], 255, dtype=np.uint8))
    ramp = enlarge(np.tile(np.arange(9.0), [1, 6, 1]), factor)[0, 0].astype(int)
    inner = ramp[2 * factor : -2 * factor]
    assert np.abs(np.diff(inner) - 255 / 16 / factor).max() <= 1
    image = np.random.RandomState(0).randint(0, 17, size=[1, 6, 6])
    np.testing.assert_array_equal(enlarge(image[:, ::-1, ::-1], factor), enlarge(image, factor)[:, ::-1, ::-1])


def byte_string(data):
    """A byte string as Python 2 pickles it."""
    return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data


def python2_batch(images, labels):
    """A CIFAR-10 batch, opcode by opcode as the published archive's Python 2 wrote it."""
    planes = images.transpose(0, 3, 1, 2).tobytes()
    shape = b"M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + byte_string(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + byte_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + byte_string(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + byte_string(planes) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}("
        + byte_string(b"batch_label")
        + byte_string(b"training")
        + byte_string(b"labels")
        + numbers
        + byte_string(b"data")
        + array
        + b"u."
    )


def cifar_archive(path, batches):
    with tarfile.open(path, "w:gz") as archive:
        for index, data in enumerate(batches, 1):
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{index}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def cifar_numbers(batches=5, size=4):
    rng = np.random.RandomState(0)
    return rng.randint(0, 256, size=[batches, size, 32, 32, 3], dtype=np.uint8), rng.randint(0, 10, size=[batches, size])


def test_cifar_archive(tmp_path):
    images, labels = cifar_numbers()
    source = cifar_archive(tmp_path / "cifar-10-python.tar.gz", [python2_batch(*batch) for batch in zip(images, labels.tolist())])
    path = convert(source, tmp_path / "cifar.zip")
    dataset = ImageFolderDataset(path, use_labels=True)
    np.testing.assert_array_equal(load_array(dataset), images.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))
    assert labels_of(path) == [[f"00000/img{index:08d}.png", int(label)] for index, label in enumerate(labels.ravel())]
    assert labels_of(convert(source, tmp_path / "plain.zip", "--labels=none")) is None


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_batches_pickled_anew(protocol):
    images, labels = cifar_numbers(1)
    batch = {"data": images[0].transpose(0, 3, 1, 2).reshape(4, 3072), "labels": labels[0].tolist(), "filenames": ["a", "b"]}
    read_images, read_labels = read_cifar_batch(pickle.dumps(batch, protocol), "batch")
    np.testing.assert_array_equal(read_images, images[0])
    np.testing.assert_array_equal(read_labels, labels[0])


class Harm:
    """Unpickled carelessly, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_cifar_pickle_runs_nothing(tmp_path):
    images, labels = cifar_numbers()
    batches = [python2_batch(*batch) for batch in zip(images, labels.tolist())]
    batches[2] = pickle.dumps({"data": Harm(tmp_path / "made"), "labels": []})
    source = cifar_archive(tmp_path / "cifar-10-python.tar.gz", batches)
    refused(tmp_path, r"data_batch_3 in .* it asks for \w+\.open, .* nothing of it was run", f"--source={source}", f"--dest={tmp_path / 'out.zip'}")
    assert not (tmp_path / "made").exists()


def test_torn_cifar_archives(tmp_path):
    images, labels = cifar_numbers()
    batches = [python2_batch(*batch) for batch in zip(images, labels.tolist())]
    dest = f"--dest={tmp_path / 'out.zip'}"
    source = cifar_archive(tmp_path / "cifar-10-python.tar.gz", batches)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, r"not a whole \.tar\.gz", f"--source={source}", dest)
    cifar_archive(source, batches[:3])
    refused(tmp_path, "lacks cifar-10-batches-py/data_batch_4", f"--source={source}", dest)
    cifar_archive(source, [*batches[:4], batches[4][:500]])
    refused(tmp_path, "data_batch_5 .* is not a batch of CIFAR-10", f"--source={source}", dest)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
    return path


def test_mnist(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, size=[6, 28, 28], dtype=np.uint8)
    source = write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    dest = f"--dest={tmp_path / 'out.zip'}"
    refused(tmp_path, r"train-labels-idx1-ubyte\.gz does not exist", f"--source={source}", dest)
    labels = write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(6, dtype=np.uint8))
    path = convert(source, tmp_path / "mnist.zip", "--max-images=5")
    array = load_array(ImageFolderDataset(path))
    assert array.shape == (5, 1, 32, 32) and [label for _, label in labels_of(path)] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(array[:, 0, 2:30, 2:30], images[:5])
    assert array.sum() == images[:5].sum()
    write_idx(labels, np.arange(4, dtype=np.uint8))
    refused(tmp_path, "6 images, .* 4 labels", f"--source={source}", dest)
    source.write_bytes(gzip.compress(gzip.decompress(source.read_bytes())[:-10]))
    refused(tmp_path, "is torn: its header announces 6x28x28 bytes", f"--source={source}", dest)
