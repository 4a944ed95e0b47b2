"""Network snapshots and training states: what is written comes back, whole or not at all, and reading runs nothing."""

import builtins
import json
import os
import pickle
import resource
import signal

import numpy as np
import pytest
import safetensors.torch
import torch

from dnnlib import EasyDict, UserError
from torch_utils import checkpoint
from torch_utils.checkpoint import NetworkRecord, load_state, read_networks, save_networks, save_state


def make_records():
    """Two networks with every awkward kind of tensor: 0-d, empty, strided, channels_last, shared, expanded, low precision."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    tensors = {
        "mapping.fc0.weight": base,
        "mapping.same_memory": base,
        "transposed": base.t(),
        "window": base[1:, 2:4],
        "expanded": torch.ones(1).expand(5),
        "channels_last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "noise_strength": torch.tensor(0.25),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
        "count": torch.tensor([1, 2, 3]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    return {
        "G_ema": NetworkRecord("training.networks.Generator", {"z_dim": 6, "synthesis_kwargs": {"conv_clamp": None}}, tensors),
        "D": NetworkRecord("training.networks.Discriminator", {"c_dim": 0, "resample_filter": [1, 3, 3, 1]}, {"b4.out.bias": torch.zeros(1)}),
    }


def assert_same_tensor(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.fixture
def snapshot(tmp_path):
    path = tmp_path / "network-snapshot-000001.safetensors"
    save_networks(path, make_records(), {"cur_nimg": 1000, "training_set_kwargs": {"path": "x.zip"}})
    return path


def test_networks_come_back(snapshot):
    records, meta = read_networks(snapshot)
    assert meta == {"cur_nimg": 1000, "training_set_kwargs": {"path": "x.zip"}}
    expected = make_records()
    assert list(records) == list(expected)
    for name, record in expected.items():
        assert records[name].class_name == record.class_name and records[name].kwargs == record.kwargs
        assert set(records[name].tensors) == set(record.tensors)
        for key, tensor in record.tensors.items():
            assert_same_tensor(records[name].tensors[key], tensor.detach())
            assert not records[name].tensors[key].requires_grad


def test_module_state_dict_round_trip(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    save_networks(tmp_path / "n.safetensors", {"G": NetworkRecord("x.Y", {}, module.state_dict())})
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    fresh.load_state_dict(read_networks(tmp_path / "n.safetensors")[0]["G"].tensors)
    for a, b in zip(module.state_dict().values(), fresh.state_dict().values()):
        assert_same_tensor(a, b)


def test_same_networks_same_bytes(snapshot, tmp_path):
    save_networks(tmp_path / "again.safetensors", make_records(), {"cur_nimg": 1000, "training_set_kwargs": {"path": "x.zip"}})
    assert (tmp_path / "again.safetensors").read_bytes() == snapshot.read_bytes()


def test_read_tensors_outlive_the_file(snapshot):
    records, _ = read_networks(snapshot)
    before = records["G_ema"].tensors["mapping.fc0.weight"].clone()
    with open(snapshot, "r+b") as handle:
        handle.truncate(10)
    assert torch.equal(records["G_ema"].tensors["mapping.fc0.weight"], before)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated_snapshot_is_refused_by_name(snapshot, keep):
    data = snapshot.read_bytes()
    snapshot.write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])
    with pytest.raises(UserError, match="network-snapshot-000001"):
        read_networks(snapshot)


def test_one_flipped_bit_in_the_weights_is_found(snapshot):
    data = bytearray(snapshot.read_bytes())
    data[-9] ^= 1
    snapshot.write_bytes(bytes(data))
    with pytest.raises(UserError, match="do not match"):
        read_networks(snapshot)


def test_foreign_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(UserError, match=r"foreign\.safetensors"):
        read_networks(foreign)
    foreign.write_bytes(pickle.dumps({"G": 1}))
    with pytest.raises(UserError, match=r"foreign\.safetensors"):
        read_networks(foreign)
    with pytest.raises(UserError, match="missing"):
        read_networks(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="folder"):
        read_networks(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 99},
        {"networks": []},
        {"meta": None},
        {"networks": {"G": {"class_name": 1, "kwargs": {}}}},
        {"networks": {"H": {"class_name": "x", "kwargs": {}}}},
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, change):
    tensors = {"G.a": torch.zeros(2)}
    description = {"format": checkpoint.FORMAT_NAME, "version": 1, "networks": {"G": {"class_name": "x", "kwargs": {}}}, "meta": {}}
    description["digest"] = checkpoint.tensors_digest(tensors)
    path = tmp_path / "n.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={checkpoint.METADATA_KEY: json.dumps(description)})
    read_networks(path)
    safetensors.torch.save_file(tensors, path, metadata={checkpoint.METADATA_KEY: json.dumps(description | change)})
    with pytest.raises(UserError, match=r"n\.safetensors"):
        read_networks(path)


def test_network_names_with_dots_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dots"):
        save_networks(tmp_path / "n.safetensors", {"G.ema": NetworkRecord("x", {}, {})})


def test_state_comes_back(tmp_path):
    state = {
        "cur_nimg": 5,
        "rng": torch.get_rng_state(),
        "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.ones(3))]).state_dict(),
        "nested": {"pl_mean": torch.tensor(0.5), "names": ("a", None, True, 1.5), 3: b"bytes"},
    }
    save_state(tmp_path / "s.pt", state)
    loaded = load_state(tmp_path / "s.pt")
    assert loaded["cur_nimg"] == 5 and torch.equal(loaded["rng"], state["rng"])
    assert loaded["optimizer"] == state["optimizer"]
    assert loaded["nested"]["names"] == ("a", None, True, 1.5) and loaded["nested"][3] == b"bytes"


def test_state_refuses_to_write_what_it_could_not_read(tmp_path):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]"):
        save_state(tmp_path / "s.pt", {"a": [1, np.float64(1.0)]})
    with pytest.raises(TypeError, match="EasyDict"):
        save_state(tmp_path / "s.pt", {"a": EasyDict(b=1)})
    assert list(tmp_path.iterdir()) == []


def with_attribute():
    tensor = torch.ones(2)
    tensor.note = "lost"
    return tensor


UNREADABLE = {
    "expanded": lambda: torch.ones(1).expand(5),
    "overlapping": lambda: torch.zeros(4).as_strided((2, 3), (1, 1)),
    "expanded parameter": lambda: torch.nn.Parameter(torch.ones(1).expand(5)),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "uint16": lambda: torch.zeros(2, dtype=torch.uint16),
    "float8": lambda: torch.zeros(2, dtype=torch.float8_e4m3fn),
    "dtype": lambda: torch.uint16,
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta": lambda: torch.zeros(2, device="meta"),
    "attribute": with_attribute,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_state_refuses_tensors_that_it_could_not_read(tmp_path, name):
    value = UNREADABLE[name]()
    torch.save({"a": [value]}, tmp_path / "plain.pt")
    with pytest.raises(UserError):
        load_state(tmp_path / "plain.pt")
    with pytest.raises(TypeError, match=r"^state\['a'\]\[0\] "):
        save_state(tmp_path / "s.pt", {"a": [value]})
    assert not (tmp_path / "s.pt").exists()


def test_tensors_of_any_layout_in_a_state_come_back(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = [base.t(), base[1:, 2:4], base[:, 5], base[::2], base[4:], base[:1].expand(1, 6), torch.zeros(0, 1).expand(0, 5), base.half()]
    tensors += [torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.nn.Parameter(base), torch.ones(1, dtype=torch.bool)]
    save_state(tmp_path / "s.pt", {"a": tensors, "b": [torch.float32, torch.bfloat16]})
    loaded = load_state(tmp_path / "s.pt")
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(loaded["a"], tensors)) and loaded["b"] == [torch.float32, torch.bfloat16]


class Hostile:
    """Pickles into a call of builtins.eval."""

    def __reduce__(self):
        return (builtins.eval, ("__import__('os').environ.__setitem__('HOSTILE_STATE_RAN', '1')",))


def test_hostile_state_runs_nothing(tmp_path):
    torch.save({"x": Hostile()}, tmp_path / "s.pt")
    with pytest.raises(UserError, match=r"s\.pt"):
        load_state(tmp_path / "s.pt")
    assert "HOSTILE_STATE_RAN" not in os.environ


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.95])
def test_damaged_state_is_refused(tmp_path, fraction):
    save_state(tmp_path / "s.pt", {"x": torch.zeros(1000)})
    data = (tmp_path / "s.pt").read_bytes()
    (tmp_path / "s.pt").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=r"s\.pt"):
        load_state(tmp_path / "s.pt")
    torch.save([1, 2], tmp_path / "s.pt")
    with pytest.raises(UserError, match="list"):
        load_state(tmp_path / "s.pt")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_state_for_which_there_is_no_memory_is_not_called_damaged(tmp_path, monkeypatch, error):
    save_state(tmp_path / "s.pt", {"x": torch.zeros(4)})

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(type(error)) as caught:
        load_state(tmp_path / "s.pt")
    assert caught.value is error


def test_one_flipped_bit_in_the_state_is_found(tmp_path):
    save_state(tmp_path / "s.pt", {"x": torch.zeros(10_000)})
    data = bytearray((tmp_path / "s.pt").read_bytes())
    data[20_000] ^= 1
    (tmp_path / "s.pt").write_bytes(bytes(data))
    with pytest.raises(UserError, match="checksums"):
        load_state(tmp_path / "s.pt")


def test_failed_write_keeps_the_old_file(tmp_path):
    """A full disk, played by a limit on the file size: one sentence, the old file intact, nothing else left behind."""
    save_state(tmp_path / "s.pt", {"x": torch.zeros(4)})
    save_networks(tmp_path / "n.safetensors", make_records())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"s\.pt"):
            save_state(tmp_path / "s.pt", {"x": torch.zeros(1_000_000)})
        with pytest.raises(UserError, match=r"n\.safetensors"):
            save_networks(tmp_path / "n.safetensors", {"G": NetworkRecord("x", {}, {"w": torch.zeros(1_000_000)})})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        save_networks(tmp_path / "none" / "n.safetensors", make_records())
    with pytest.raises(UserError, match="cannot write"):
        save_state(tmp_path / "none" / "s.pt", {})
