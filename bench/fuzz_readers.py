"""The readers that are fuzzed: for each, sound files to begin with, how to damage them, and what reads them in earnest."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import pathlib
import pickle
import random
import shutil
import struct
import tarfile
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from bench import fuzz_inputs as inputs
from bench.fuzz_samples import EDGE, HostileDetector, PlainDetector, as_persistent, labels_of, pickled, pictures_of_noise, tiny_networks
from bench.tensorflow_files import file_of as tensorflow_file
from dnnlib import UserError
from experiments.images import plan, results, run_state, speed
from experiments.paper.results import read_result
from experiments.toy.parts import Part, load_part, part_path, save_part
from metrics.detectors import check_detector, get_detector
from metrics.detectors.trust import trust
from metrics.feature_cache import FeatureCache
from metrics.feature_files import FeatureFile, is_feature_file, load_features, save_features
from metrics.runs import load_runs
from torch_utils.checkpoint import load_state, save_networks, save_state, tensors_digest
from training.dataset import ImageFolderDataset
from training.dataset_archives import CIFAR_BATCHES, read_cifar10, read_mnist
from training.dataset_check import check_dataset, format_report
from training.dataset_sources import open_source
from training.dataset_writer import convert_dataset, make_transform, plain_mode
from training.image_store import decode_array, load_pixels, open_image
from training.networks import load_network, network_record
from training.projection import read_projection
from training.run_files import RunDir

Damage = Callable[[random.Random, bytes], bytes]
CANARY = "canary"  # the file, beside the reader's folder, that hostile inputs try to make


class Reader:
    """One reader.

    Attributes:
        name: in the table.
        file: name of the file it is given.
        folder: where that lies, made by this.
        seeds: sound contents.
        damage: makes a hostile content of a sound one.
        read: reads a file as the commands do; returns for an accepted one, raises UserError for a refused one.
    """

    def __init__(self, name: str, file: str, folder: pathlib.Path):
        self.name, self.file, self.folder = name, file, folder
        self.folder.mkdir(parents=True)
        self.path = folder / file
        self.seeds, self.damage, self.read = _MAKERS[name](self)

    @property
    def canary(self) -> pathlib.Path:
        """What nothing may make."""
        return self.folder.parent / CANARY


Parts = tuple[list[bytes], Damage, Callable[[pathlib.Path], Any]]


def reader_names() -> list[str]:
    """All of them, in the order of the table."""
    return list(FILES)


def make_reader(name: str, folder: pathlib.Path) -> Reader:
    """A reader with its sound files; `folder` is made."""
    return Reader(name, FILES[name], folder)


# Networks and states.


def _snapshot(reader: Reader) -> Parts:
    meta = {"training_set_kwargs": {"path": "/x.zip", "use_labels": True, "xflip": False}, "cur_nimg": 1000}
    save_networks(reader.path, {name: network_record(module) for name, module in tiny_networks().items()}, meta)
    seed = reader.path.read_bytes()

    def damage(r: random.Random, data: bytes) -> bytes:
        return _odd_description(r, data) if r.random() < 0.5 else inputs.odd_header(r, data)

    return [seed], damage, load_network


def _odd_description(r: random.Random, data: bytes) -> bytes:
    """A snapshot whose description was changed as a tree, or one of whose tensors has another form, with a digest that fits."""
    (size,) = struct.unpack("<Q", data[:8])
    description = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["pairing_gan"])
    tensors = safetensors.torch.load(data)
    if r.random() < 0.3:
        name = r.choice(list(tensors))
        kinds = (torch.int64, torch.float64, torch.bool, torch.complex64, torch.float8_e4m3fn)
        tensors[name] = r.choice((torch.zeros(r.choice(((), (0,), (7,), (3, 0, 2)))), torch.zeros(tensors[name].shape, dtype=r.choice(kinds))))
        description["digest"] = tensors_digest(tensors)
    else:
        at = r.choice(("networks", "networks", "networks", "meta", "version", "digest"))
        description[at] = inputs.odd_tree(r, description[at])
    return safetensors.torch.save(tensors, metadata={"pairing_gan": json.dumps(description)})


def _pickle(reader: Reader) -> Parts:
    content = {name: as_persistent(module) for name, module in tiny_networks().items()} | {"training_set_kwargs": {"path": "/x.zip"}}
    hostile = inputs.hostile_calls(f"touch {reader.canary}", str(reader.canary))
    return [pickled(content)], lambda r, data: inputs.odd_pickle(r, data, hostile), load_network


def _tensorflow(reader: Reader) -> Parts:
    hostile = inputs.hostile_calls(f"touch {reader.canary}", str(reader.canary))
    return [tensorflow_file(labels=2), tensorflow_file(protocol=5)], lambda r, data: inputs.odd_pickle(r, data, hostile), load_network


def _state(reader: Reader) -> Parts:
    network = tiny_networks()["D"]
    optimizer = torch.optim.Adam(network.parameters())
    save_state(
        reader.path, {"networks": {"D": network.state_dict()}, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "seconds": 1.5}
    )
    hostile = inputs.hostile_calls(f"touch {reader.canary}", str(reader.canary))

    def damage(r: random.Random, data: bytes) -> bytes:
        if r.random() < 0.3:
            return inputs.odd_zip(r, data)
        members = inputs.unpacked(data)
        name = next(name for name in members if name.endswith("/data.pkl"))
        members[name] = inputs.odd_pickle(r, members[name], hostile)
        return inputs.packed(members)

    return [reader.path.read_bytes()], damage, load_state


def _projection(reader: Reader) -> Parts:
    sizes = types.SimpleNamespace(num_ws=4, w_dim=8)
    np.savez(reader.path, w=np.zeros([2, sizes.num_ws, sizes.w_dim], np.float32))
    return [reader.path.read_bytes()], inputs.odd_zip, lambda path: read_projection(str(path), sizes)


def _detector(reader: Reader) -> Parts:
    seeds = []
    for module in (PlainDetector(), HostileDetector(str(reader.canary))):
        with io.BytesIO() as buffer:
            torch.jit.save(torch.jit.script(module), buffer)
            seeds.append(buffer.getvalue())
    trust(hashlib.sha256(seeds[0]).hexdigest(), "plain", remember=False)
    return seeds, inputs.odd_zip, _read_detector


def _read_detector(path: pathlib.Path) -> None:
    check_detector(str(path))
    get_detector(str(path), "cpu")


# Data sets.


def _read_set(path: pathlib.Path) -> None:
    """Everything that the commands do with a set, converting it included; the first refusal counts."""
    out = path.parent / "out.zip"
    steps: list[Callable[[], Any]] = [
        lambda: _read_all(ImageFolderDataset(path)),
        lambda: _read_all(ImageFolderDataset(path, use_labels=True)),
        lambda: format_report(check_dataset(path)),
        lambda: convert_dataset(open_source(str(path)), out, make_transform("center-crop", EDGE, EDGE, "box"), "rgb"),
    ]
    refusals = []
    for step in steps:
        try:
            step()
        except UserError as error:
            refusals.append(error)
    out.unlink(missing_ok=True)
    if refusals:
        raise refusals[0]


def _read_all(dataset: ImageFolderDataset) -> None:
    for index in range(len(dataset)):
        dataset[index]
    dataset.fingerprint()
    dataset.close()


def _zip(reader: Reader) -> Parts:
    pictures = pictures_of_noise()
    members = {**pictures, "dataset.json": labels_of(pictures)}
    return [inputs.packed(members), inputs.packed(members, 8)], inputs.odd_zip, _read_set


def _label_file(reader: Reader) -> Parts:
    pictures = pictures_of_noise()
    for name, data in pictures.items():
        (reader.folder / name).parent.mkdir(exist_ok=True)
        (reader.folder / name).write_bytes(data)
    vectors = json.dumps({"labels": [[name, [0.5, index]] for index, name in enumerate(pictures)]}).encode()

    def read(path: pathlib.Path) -> None:
        check_dataset(path.parent)
        dataset = ImageFolderDataset(path.parent, use_labels=True)
        dataset.get_labels(np.arange(len(dataset)))

    return [labels_of(pictures), vectors], inputs.odd_json, read


def _picture_reader(*suffixes: str) -> Callable[[Reader], Parts]:
    def make(reader: Reader) -> Parts:
        gradient = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
        modes = [gradient, gradient.convert("L"), gradient.convert("P"), gradient.convert("RGBA"), gradient.convert("CMYK"), gradient.convert("I;16")]
        seeds = []
        for suffix in suffixes:
            for image in modes:
                with io.BytesIO() as buffer:
                    try:
                        image.save(buffer, suffix, **({"save_all": True, "append_images": [image]} if suffix in ("gif", "webp", "tiff") else {}))
                    except (OSError, KeyError, ValueError):  # a mode that the format does not have
                        continue
                    seeds.append(buffer.getvalue())
        return seeds, inputs.odd_png, _read_picture

    return make


def _read_picture(path: pathlib.Path) -> None:
    data, where = path.read_bytes(), str(path)
    image = open_image(data, where)
    load_pixels(image, where)
    plain_mode(image, where, "rgb")
    decode_array(data, where)


def _cifar(reader: Reader) -> Parts:
    batch = {"data": np.zeros([2, 3072], np.uint8), "labels": [1, 2], "batch_label": "x", "filenames": ["a", "b"]}
    hostile = inputs.hostile_calls(f"touch {reader.canary}", str(reader.canary))
    sound = pickle.dumps(batch, 2)

    def archive(batches: list[bytes], extra: tarfile.TarInfo | None = None) -> bytes:
        with io.BytesIO() as buffer:
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name, data in zip(CIFAR_BATCHES, batches):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                if extra is not None:
                    tar.addfile(extra)
            return gzip.compress(buffer.getvalue(), 1)

    def damage(r: random.Random, data: bytes) -> bytes:
        if r.random() < 0.3:
            return inputs.odd_gzip(r, data)
        if r.random() < 0.1:
            extra = tarfile.TarInfo(r.choice(("../x", "/tmp/x", CIFAR_BATCHES[0])))
            extra.type, extra.linkname = r.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)), "/etc/passwd"
            return archive([sound] * 5, extra)
        batches = [sound] * 5
        batches[r.randrange(5)] = inputs.odd_pickle(r, sound, hostile)
        return archive(batches)

    return [archive([sound] * 5)], damage, read_cifar10


def _mnist(reader: Reader) -> Parts:
    (reader.folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 2) + b"\x01\x02"))
    images = b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 28, 28) + bytes(2 * 28 * 28)
    return [gzip.compress(images)], inputs.odd_gzip, lambda path: read_mnist(path, with_labels=True)


# Features.


def _cache(reader: Reader) -> Parts:
    key = {"detector": "embedded", "digest": "0" * 64, "dataset": "1" * 64, "count": 5}
    cache = FeatureCache(reader.folder)
    cache.save(key, {"rows": torch.randn(5, 4, generator=torch.Generator().manual_seed(0))})
    reader.path = cache.path(key)

    def read(path: pathlib.Path) -> None:
        said: list[str] = []
        if FeatureCache(reader.folder, log=said.append).load(key) is None:
            raise UserError(" ".join(said))  # it says so and computes anew

    return [reader.path.read_bytes()], inputs.odd_header, read


def _features(reader: Reader) -> Parts:
    rows, labels = torch.ones(5, 4), torch.ones(5, 2)
    save_features(FeatureFile(reader.path, rows, labels, "embedded", "0" * 64, "none", "1" * 64, (EDGE, EDGE)))

    def damage(r: random.Random, data: bytes) -> bytes:
        if r.random() < 0.5:
            return inputs.odd_header(r, data)
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        facts = inputs.odd_tree(r, json.loads(header["__metadata__"]["features"]))
        header["__metadata__"]["features"] = json.dumps(facts)
        return inputs.with_header(json.dumps(header).encode(), data[8 + size :])

    def read(path: pathlib.Path) -> None:
        is_feature_file(path)
        load_features(path)

    return [reader.path.read_bytes()], damage, read


def _part(reader: Reader) -> Parts:
    part = Part("column", "GAN", 0, {"recall": 0.5}, [torch.ones(1, 2, 2)], {0: [torch.ones(1, 2, 2)]}, {"step": torch.arange(3)})
    save_part(part, reader.folder, {"seeds": [0]})
    made = part_path(reader.folder, part.study, part.method, part.seed)
    return [made.read_bytes()], inputs.odd_header, load_part


# JSON of runs and results.


def _run_options(reader: Reader) -> Parts:
    data = {"path": "/x.zip", "use_labels": False, "max_size": 10, "xflip": False, "resolution": 8}
    options = {"training_set_kwargs": data, "G_kwargs": {"z_dim": 4}, "D_kwargs": {}, "loss_kwargs": {"r1_gamma": 1.0}, "total_kimg": 1}
    options |= {"device": "cpu", "random_seed": 0, "num_gpus": 1, "metrics": ["fid50k_full"], "detector": None, "augment_kwargs": {"xflip": 1}}
    options |= {"run_dir": "x", "G_opt_kwargs": {"lr": 0.002}}

    def read(path: pathlib.Path) -> None:
        RunDir.open(path.parent)
        run_state.read_options(path.parent)
        results.load_run(path.parent)

    return [json.dumps(options).encode()], inputs.odd_json, read


def _run_lines(reader: Reader) -> Parts:
    (reader.folder / "training_options.json").write_bytes(_run_options(reader)[0][0])
    stats = [{"Progress/kimg": {"num": 1, "mean": kimg, "std": 0}, "Timing/sec_per_kimg": {"num": 1, "mean": 2.5, "std": 0}} for kimg in (1, 2)]
    lines = [
        {"results": {"fid50k_full": 5.0}, "metric": "fid50k_full", "snapshot_pkl": f"network-snapshot-00000{kimg}.safetensors", "total_time": 1.0}
        | {"protocol": {"detector": "inception", "num_real": 100}}
        for kimg in (1, 2)
    ]
    seeds = [b"".join(json.dumps(line).encode() + b"\n" for line in content) for content in (stats, lines)]

    def read(path: pathlib.Path) -> None:
        shutil.copyfile(path, path.with_name("metric-fid50k_full.jsonl"))
        speed.stats_lines(path.parent)
        RunDir(path.parent).best("fid50k_full")
        run_state.measured_snapshots(path.parent, ["fid50k_full"])
        load_runs([path.parent])
        results.load_run(path.parent)

    return seeds, inputs.odd_json, read


def _result_files(reader: Reader) -> Parts:
    paths = sorted((pathlib.Path(__file__).parent.parent / "docs" / "results" / "toy").glob("*.json"))
    small = [path.read_bytes() for path in paths if path.stat().st_size < 100_000]
    speeds = {"machines": {"cpu": {"sec_per_kimg": {"a": 1.0}, "sec_per_snapshot": {"b": 2.0}}}}
    where = {"device": "cpu", "gpus": 1, "precision": None}
    plans = {"budgets": {"short": {"experiments": ["table3"], "seeds": 1, "data": "x", "runs": {}} | where}}

    def read(path: pathlib.Path) -> None:
        data = path.read_bytes()
        steps = {plan.PLAN_FILE: plan.read_plans, speed.SPEED_FILE: speed.Speed, run_state.ARCHIVE_FILE: run_state.archived_snapshots}
        for name, step in steps.items():
            (path.parent / name).write_bytes(data)
            with contextlib.suppress(UserError):
                step(path.parent)
        read_result(path)

    archived, *others = (json.dumps(value).encode() for value in ({"snapshots": [0, 60]}, speeds, plans))
    return [archived, *small[:5], *others], inputs.odd_json, read


FILES = {
    "network pickle": "network.pkl",
    "TensorFlow pickle": "tensorflow.pkl",
    "snapshot": "network.safetensors",
    "training state": "training-state-000001.pt",
    "data set zip": "set.zip",
    "dataset.json": "dataset.json",
    "PNG": "x.png",
    "JPEG": "x.jpg",
    "other pictures": "x.img",
    "CIFAR-10 archive": "cifar-10-python.tar.gz",
    "MNIST archive": "train-images-idx3-ubyte.gz",
    "feature cache": "entry.safetensors",
    "feature file": "features.safetensors",
    "TorchScript detector": "detector.pt",
    "projected w": "projected_w.npz",
    "run options": "training_options.json",
    "run lines": "stats.jsonl",
    "result files": "table1.json",
    "toy part": "part.safetensors",
}
_MAKERS: dict[str, Callable[[Reader], Parts]] = {
    "network pickle": _pickle,
    "TensorFlow pickle": _tensorflow,
    "snapshot": _snapshot,
    "training state": _state,
    "data set zip": _zip,
    "dataset.json": _label_file,
    "PNG": _picture_reader("png"),
    "JPEG": _picture_reader("jpeg"),
    "other pictures": _picture_reader("gif", "bmp", "tiff", "webp", "tga", "ppm"),
    "CIFAR-10 archive": _cifar,
    "MNIST archive": _mnist,
    "feature cache": _cache,
    "feature file": _features,
    "TorchScript detector": _detector,
    "projected w": _projection,
    "run options": _run_options,
    "run lines": _run_lines,
    "result files": _result_files,
    "toy part": _part,
}
