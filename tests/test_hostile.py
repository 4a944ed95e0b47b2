"""Files that ask for more than they hold, lie about themselves, or are programs: refused in one sentence, before memory, disk or trust is spent."""

import contextlib
import gzip
import io
import os
import pathlib
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest
import safetensors.torch
import torch
from image_sets import png, pngs, write_folder, write_zip
from tiny_runs import tiny_args, write_data

from bench.fuzz_inputs import packed, unpacked, with_header
from bench.fuzz_samples import HostileDetector
from dnnlib import UserError, download
from dnnlib.json_files import parse_json, read_json, read_json_lines
from metrics.detectors import check_detector, get_detector, trust, trust_detector
from torch_utils import torch_files
from torch_utils.checkpoint import NetworkRecord, load_state, save_networks, save_state
from torch_utils.legacy import read_pickle
from torch_utils.safe_pickle import PickleMachine, RefusedPickle
from training import config, dataset_archives
from training.dataset import ImageFolderDataset
from training.dataset_archives import read_cifar10, read_mnist
from training.generator_cli import load_generator
from training.image_store import ZipStore, decode_array, open_store
from training.networks import Discriminator, Generator, build_network, load_network, network_record
from training.projection import read_projection

GOLDEN = "tests/data/sg2_network.pkl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


def peak_of(function):
    """Python's own memory at its peak, in MB, and what the function raised."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            function()
        return tracemalloc.get_traced_memory()[1] / 1e6, str(error.value)
    finally:
        tracemalloc.stop()


# Networks.


def tiny_record():
    return network_record(Discriminator(0, 8, 3, channel_base=32, channel_max=4))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(channel_base=1 << 24, channel_max=1 << 20), "size mismatch"),  # a thousand terabytes
        (dict(img_resolution=1 << 20), "does not fit"),
        (dict(mapping_kwargs={"num_layers": 10**9}), "its argument num_layers is '1000000000'"),
        (dict(channel_max=1 << 40), "its argument channel_max is"),
        (dict(channel_max="4"), "its argument channel_max is '4'"),
        (dict(conv_clamp=[1]), "its argument conv_clamp is"),
        (dict(block_kwargs={"resample_filter": [1] * 100_000}), "its argument resample_filter is"),
        (dict(block_kwargs={"resample_filter": [[1] * 100_000] * 3}), "its argument resample_filter is"),
        (dict(architecture={"x_kwargs": 1}), "its argument architecture is"),
        (dict(img_channels=-3), "its argument img_channels is '-3'"),
    ],
)
def test_arguments_are_held_against_the_tensors_before_memory_is_taken(tmp_path, kwargs, message):
    record = tiny_record()
    build_network(record)  # torch imports 70 MB at the first use of the meta device, whatever the network
    save_networks(tmp_path / "n.safetensors", {"D": NetworkRecord(record.class_name, {**record.kwargs, **kwargs}, record.tensors)})
    peak, said = peak_of(lambda: load_network(tmp_path / "n.safetensors"))
    assert message in said and "alloc" not in said and peak < 50


def test_a_small_file_does_not_make_a_generator_of_gigantic_images(tmp_path):
    """Without noise inputs, and as narrow as can be, no tensor of a network grows with its resolution."""
    sizes = {"img_resolution": 1 << 16, "synthesis_kwargs": {"use_noise": False, "channel_base": 1 << 16, "channel_max": 1}}
    record = network_record(Generator(4, 0, 4, 1 << 13, 3, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=sizes["synthesis_kwargs"]))
    assert build_network(record).img_resolution == 1 << 13
    with pytest.raises(UserError, match="its argument img_resolution is '65536'"):
        build_network(NetworkRecord(record.class_name, {**record.kwargs, **sizes}, record.tensors))


def test_networks_that_build_but_make_no_pictures_are_refused(tmp_path):
    narrow = {"channel_base": 32, "channel_max": 4}
    for channels, said in ((5, "makes images of 5 channels"), (4, None)):
        record = network_record(Generator(4, 0, 4, 8, channels, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=narrow))
        save_networks(tmp_path / "n.safetensors", {"G_ema": record}, {})
        with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
            load_generator(str(tmp_path / "n.safetensors"))
    record.kwargs.update(z_dim=8, mapping_kwargs={"num_layers": 0})
    without_layers = {name: tensor for name, tensor in record.tensors.items() if ".fc" not in name}
    with pytest.raises(UserError, match="without layers gives out 8 numbers, but w_dim is 4"):
        build_network(NetworkRecord(record.class_name, record.kwargs, without_layers))


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 4), }" + b" " * (1 << 25), b"("])
def test_the_header_of_a_projection_takes_no_more_than_a_header(tmp_path, header):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header) + 1) + header + b"\n" + bytes(64))
    G = Generator(4, 0, 4, 8, 3, mapping_kwargs={"num_layers": 1}, synthesis_kwargs={"channel_base": 32, "channel_max": 4})
    peak, said = peak_of(lambda: read_projection(str(tmp_path / "w.npz"), G))
    assert "is not an .npz file with an array named w" in said and peak < 10


def test_tensors_that_are_no_weights(tmp_path):
    record = tiny_record()
    for tensor in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)):
        odd = NetworkRecord(record.class_name, record.kwargs, {**record.tensors, "b4.out.bias": tensor})
        with pytest.raises(UserError, match=r"its b4.out.bias is of torch\.(int64|bool)"):
            build_network(odd)
    assert build_network(record).img_resolution == 8


def test_descriptions_of_training_sets_that_are_none(tmp_path):
    for found in ([], "x", {"path": 5}, {"path": "x", "max_size": "all"}):
        save_networks(tmp_path / "n.safetensors", {"D": tiny_record()}, {"training_set_kwargs": found})
        with pytest.raises(UserError, match="describes its training set by"):
            load_network(tmp_path / "n.safetensors")
    save_networks(tmp_path / "n.safetensors", {"D": tiny_record()}, {"training_set_kwargs": {"path": "x", "max_size": None, "new": 1}})
    assert load_network(tmp_path / "n.safetensors").meta["training_set_kwargs"]["path"] == "x"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        with_header(b'{"a":{"dtype":"F32","shape":[1000000,1000000,1000000],"data_offsets":[0,4]}}', bytes(4)),
        with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        with_header(b'{"__metadata__":{"pairing_gan":"' + b"[" * 5000 + b'"}}', b""),
        with_header(b"[" * 5000, b""),
        with_header(b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
        with_header(b'{"__metadata__":{"pairing_gan":"[1]"}}', b""),
        with_header(b'{"__metadata__":{"pairing_gan":5}}', b""),
    ],
)
def test_safetensors_that_lie(tmp_path, data):
    (tmp_path / "n.safetensors").write_bytes(data)
    peak, said = peak_of(lambda: load_network(tmp_path / "n.safetensors"))
    assert "n.safetensors" in said and peak < 5


def test_too_many_tensors_are_refused_before_they_are_made(tmp_path):
    safetensors.torch.save_file({f"t{index}": torch.zeros(0) for index in range(10_001)}, tmp_path / "n.safetensors", {"pairing_gan": "{}"})
    with pytest.raises(UserError, match="10,001 tensors"):
        load_network(tmp_path / "n.safetensors")


# Tensors in torch's own formats.


def old_storage(tensor):
    return tensor._typed_storage().__reduce__()[1][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_old_storages_are_read_as_torch_reads_them(dtype):
    for count in (0, 1, 7):
        values = torch.arange(count).to(dtype)
        found = torch_files.read_storage(old_storage(values))
        assert found.dtype == dtype and torch.equal(found, values)


def test_old_storages_that_lie_about_their_length():
    data = old_storage(torch.zeros(4))
    assert b"K\x04" in data
    for lie in (b"K\x05", b"\x8a\x06\x00\x00\x00\x00\x00\x10"):
        for odd in (data.replace(b"K\x04", lie), data[:-1], data + b"x"):
            with pytest.raises(RefusedPickle):
                torch_files.read_storage(odd)


def state_with(tmp_path, pickled, method=zipfile.ZIP_STORED):
    """A training state whose pickle is another one."""
    save_state(tmp_path / "s.pt", {"x": torch.zeros(4)})
    members = unpacked((tmp_path / "s.pt").read_bytes())
    name = next(name for name in members if name.endswith("data.pkl"))
    (tmp_path / "s.pt").write_bytes(packed({**members, name: pickled(members[name])}, method))
    return tmp_path / "s.pt"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (lambda data: b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x7f\x85R.", "asks for builtins.bytearray"),
        (lambda data: data.replace(b"K\x04tq", b"\x8a\x06\x00\x00\x00\x00\x00\x10tq"), "of another length than it says"),
        (lambda data: data.replace(b"K\x04\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x10\x85"), "larger than its memory"),
        (lambda data: data.replace(b"K\x01\x85", b"K\x00\x85").replace(b"K\x04\x85", b"\x8a\x05\x00\x00\x00\x00\x10\x85"), "larger than its memory"),
        (lambda data: b"\x80\x02ctorch\nFloatStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.", "calls a number type"),
        (lambda data: b"\x80\x02}" + b"(" * 3000 + b".", "damaged"),
    ],
)
def test_states_that_ask_for_more_than_they_hold(tmp_path, pickled, message):
    path = state_with(tmp_path, pickled)
    peak, said = peak_of(lambda: load_state(path))
    assert message in said and peak < 5
    assert load_state(state_with(tmp_path, lambda data: data))["x"].shape == (4,)


def test_a_packed_state_is_refused(tmp_path):
    with pytest.raises(UserError, match="claims to hold more than its length"):
        load_state(state_with(tmp_path, lambda data: data, zipfile.ZIP_DEFLATED))


# Zips and folders of images.


def patched_directory(path, offset, value):
    """Changes four bytes of the first entry in a zip's directory."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + offset
    data[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(bytes(data))


def test_a_member_gives_no_more_than_the_directory_says(tmp_path):
    """The bytes of a bomb whose directory calls it small stay packed."""
    path = write_zip(tmp_path / "a.zip", {"x.png": bytes(1 << 26)}, method=zipfile.ZIP_DEFLATED)
    patched_directory(path, 24, 100)
    store = ZipStore(path)
    peak, said = peak_of(lambda: store.read("x.png"))
    assert "cannot read x.png" in said and peak < 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: patched_directory(write_zip(path, pngs(2)), 24, 1 << 30), r"claims more than 8\d\d packed bytes can hold"),
        (lambda path: patched_directory(write_zip(path, pngs(2)), 42, 900), "overlaps the one before it"),
        (lambda path: path.write_bytes(packed(pngs(2), link="00000/img00000000.png")), "is a symbolic link"),
        (lambda path: path.write_bytes(packed(pngs(2), zipfile.ZIP_LZMA)), "by a method other than deflate"),
        (lambda path: path.write_bytes(packed({"a.png": png(0), "./a.png": png(1)})), "holds two files named 'a.png'"),
        (lambda path: path.write_bytes(packed({"../a.png": png(0)})), "points outside of the zip"),
    ],
)
def test_zips_that_lie(tmp_path, make, message):
    make(tmp_path / "a.zip")
    with pytest.raises(UserError, match=message):
        ZipStore(tmp_path / "a.zip")


def test_too_large_an_image_is_not_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    data = bytearray(png(0))
    data[16:29], data[29:33] = header, struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(UserError, match="x is 9000x9000 pixels; at most 67,108,864 pixels are read for training"):
        decode_array(bytes(data), "x")
    with pytest.raises(UserError, match="has 600,000,000 bytes; at most 536,870,912 are read"):
        os.truncate(write_folder(tmp_path, {"big.png": b""}) / "big.png", 600_000_000)
        open_store(tmp_path).read("big.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_the_images_does_not_stop_the_reading(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="is no regular file"):
        ImageFolderDataset(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[name, 10**15] for name in pngs(2)], "holds the label 1000000000000000 for 2 images"),
        ([[name, 10**30] for name in pngs(2)], "a label of more than 64 bits"),
        ([[name, [1e300]] for name in pngs(2)], "not finite"),
        ([[name, True] for name in pngs(2)], "holds labels such as"),
        ([[name, {}] for name in pngs(2)], "holds labels such as"),
        ([["x" * 3_000_000, 0]], "has 3,000,.* bytes; at most"),
    ],
)
def test_labels_that_would_cost_too_much(tmp_path, labels, message):
    path = write_zip(tmp_path / "a.zip", pngs(2), labels)
    with pytest.raises(UserError, match=message):
        ImageFolderDataset(path, use_labels=True)


# Archives.


def test_a_gzip_bomb_named_as_mnist(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for content, message in (
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 1, 28, 28) + bytes(1 << 26), "more follow"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 2**31, 28, 28), "far more than a file of its length can hold"),
    ):
        path.write_bytes(gzip.compress(content, 9))
        peak, said = peak_of(lambda: read_mnist(path, with_labels=False))
        assert message in said and peak < 2


def test_a_bomb_named_as_cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_archives, "CIFAR_ARCHIVE_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("other")
        info.size = 1 << 24
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    peak, said = peak_of(lambda: read_cifar10(tmp_path / "cifar-10-python.tar.gz"))
    assert "unpacks to more than such an archive holds" in said and peak < 2


def test_a_number_outside_of_a_pickle_is_refused():
    with pytest.raises(RefusedPickle, match="refers to something outside of it"):
        PickleMachine({}).load(b"\x80\x02K\x01Q.")
    stream = io.BytesIO(pickle.dumps([1, 2], 2) + pickle.dumps("x", 2))
    machine = PickleMachine({})
    assert [machine.load(stream), machine.load(stream)] == [[1, 2], "x"]


# JSON and messages.


def test_json_is_bounded(tmp_path):
    assert parse_json(b"[" * 90 + b"]" * 90)
    for text in ("[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 150 + "1" + "}" * 150):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        parse_json("[1, 2, 3, 4, 5]", 10)
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n[1]\n{"a"\n\xff\n{"b": 2}\n')
    assert read_json_lines(tmp_path / "x.jsonl") == [{"a": 1}, {"b": 2}] and read_json_lines(tmp_path / "none") == []
    with pytest.raises(ValueError, match="longer than 5 bytes"):
        read_json(tmp_path / "x.jsonl", 5)
    with pytest.raises(OSError):
        read_json(tmp_path)


def test_a_sentence_stays_one_line_whatever_a_file_puts_into_it(tmp_path):
    assert str(UserError("a\nb\x1b[31m\u202e")) == "a\\nb\\x1b[31m\\u202e"
    assert str(UserError("Grüße")) == "Grüße" and len(str(UserError("x" * 10_000))) == 2000
    path = write_zip(tmp_path / "a.zip", {"x\n\x1b[2J.png": b"no picture"})
    with pytest.raises(UserError) as error:
        ImageFolderDataset(path)
    assert str(error.value).isprintable() and "x\\n\\x1b[2J.png" in str(error.value)


# Detectors are programs.


@pytest.fixture
def program(tmp_path, monkeypatch):
    """(detector that writes a file when it is loaded, that file); nothing is trusted yet."""
    monkeypatch.setattr(trust, "_trusted_now", set())
    torch.jit.script(HostileDetector(str(tmp_path / "canary"))).save(str(tmp_path / "net.pt"))
    return tmp_path / "net.pt", tmp_path / "canary"


def test_an_unknown_program_runs_only_when_its_user_says_so(program, capsys, monkeypatch):
    path, canary = program
    digest = download.file_digest(path)
    for attempt in (check_detector, lambda spec: get_detector(spec, "cpu")):
        with pytest.raises(UserError, match=rf"{path} is a program \(TorchScript\).*{digest} is not known here; give --trust-detector once"):
            attempt(str(path))
    assert not canary.exists()
    trust_detector(str(path))
    assert f"trusting the detector net.pt from now on (SHA-256 {digest}" in capsys.readouterr().err and not canary.exists()
    monkeypatch.setattr(trust, "_trusted_now", set())  # another command
    assert get_detector(str(path), "cpu")(torch.zeros(2, 3, 2, 2, dtype=torch.uint8)).shape == (2, 12)
    assert canary.exists()  # it did run code


def test_trust_is_in_the_content(program):
    path, _ = program
    trust_detector(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/extra", b"x")
    with pytest.raises(UserError, match="not known here"):
        check_detector(str(path))
    (download.cache_dir() / trust.TRUST_FILE).write_bytes(b"\xff\xfe\n" + download.file_digest(path).encode()[:63] + b"\n")
    with pytest.raises(UserError, match="not known here"):
        check_detector(str(path))


def test_trust_that_cannot_be_kept_holds_for_this_command(program, capsys, monkeypatch):
    path, _ = program
    (download.cache_dir() / trust.TRUST_FILE).mkdir()
    trust_detector(str(path))
    assert "holds for this command only" in capsys.readouterr().err
    check_detector(str(path))


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("\n", False), ("", False), ("no\n", False)])
def test_at_a_terminal_it_is_asked(program, monkeypatch, answer, runs, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    path, _ = program
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", Terminal())
    if runs:
        check_detector(str(path))
        assert trust.is_trusted(download.file_digest(path))
    else:
        with pytest.raises(UserError, match="not known here"):
            check_detector(str(path))


# Downloads, and networks to start from.


def test_a_download_without_end_is_broken_off(site, monkeypatch):
    url, folder = site
    monkeypatch.setattr(download, "MAX_BYTES", 1 << 17)
    (folder / "x").write_bytes(bytes(1 << 18))
    with pytest.raises(UserError, match="it is longer than 131,072 bytes"):
        download.fetch(f"{url}/x")
    assert not download.cached_path(f"{url}/x").exists()


def test_a_named_source_comes_by_its_url_and_from_a_file(site, tmp_path, monkeypatch):
    """The same networks, whether --resume names a source, its URL, a file, or what legacy.py made of it."""
    url, folder = site
    (folder / "ffhq256.pkl").write_bytes(pathlib.Path(GOLDEN).read_bytes())
    monkeypatch.setitem(config.RESUME_SOURCES, "ffhq256", f"{url}/ffhq256.pkl")
    images = write_data(tmp_path / "pics.zip", count=2)
    records, _ = read_pickle(GOLDEN)
    save_networks(tmp_path / "ffhq.safetensors", records)
    for source in ("ffhq256", f"{url}/ffhq256.pkl", GOLDEN, str(tmp_path / "ffhq.safetensors")):
        args = tiny_args(images, "unused", resume=source, ops="reference")
        networks = load_network(download.fetch(args.resume_pkl))
        assert (args.resume_pkl != source) == (source == "ffhq256")
        for name, record in records.items():
            assert all(torch.equal(tensor, record.tensors[key]) for key, tensor in networks[name].state_dict().items()), (source, name)
        (folder / "ffhq256.pkl").unlink(missing_ok=True)  # from here on it comes from the cache
