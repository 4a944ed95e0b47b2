"""Foreign network files: the golden StyleGAN2-ADA pickle becomes our records and networks, hostile ones are refused and run nothing."""

import builtins
import importlib
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dnnlib
import legacy as legacy_command
from bench.fuzz_samples import Call, emit, pickled
from dnnlib import UserError
from dnnlib.util import open_url
from torch_utils.checkpoint import read_networks, save_networks
from torch_utils.legacy import read_pickle
from torch_utils.safe_pickle import PickleMachine, RefusedPickle
from training.networks import load_network

DATA = pathlib.Path(__file__).parent / "data"
GOLDEN = DATA / "sg2_network.pkl"


class Hostile:
    """Pickles into a call of os.system."""

    def __reduce__(self):
        return (os.system, ("true",))


HOSTILE_BYTES = pickle.dumps({"G": Hostile(), "D": 1})


def tensor(values, size=None, stride=None, offset=0):
    """A tensor as plain pickle stores it."""
    values = torch.as_tensor(values, dtype=torch.float32)
    buffer = DATA_BUFFERS.setdefault(tuple(values.flatten().tolist()), storage_bytes(values))
    size = tuple(values.shape) if size is None else size
    stride = values.stride() if stride is None else stride
    return Call(
        "torch._utils._rebuild_tensor_v2",
        Call("torch.storage._load_from_bytes", buffer),
        offset,
        tuple(size),
        tuple(stride),
        False,
        Call("collections.OrderedDict"),
    )


DATA_BUFFERS = {}


def storage_bytes(values):
    """The bytes that a storage puts into a plain pickle, taken from a pickle of the tensor."""
    return max((argument for _, argument, _ in pickle_ops(pickle.dumps(values.contiguous())) if isinstance(argument, bytes)), key=len)


def pickle_ops(data):
    return list(importlib.import_module("pickletools").genops(data))


def module(class_name, parameters=None, buffers=None, modules=None, args=(), kwargs=None, **attributes):
    """A persistent object of StyleGAN2-ADA."""
    state = {
        "training": False,
        "_parameters": parameters or {},
        "_buffers": buffers or {},
        "_modules": modules or {},
        "_init_args": args,
        "_init_kwargs": kwargs or {},
        **attributes,
    }
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def generator(synthesis_parts=None, class_name="Generator", args=(64, 0, 64, 8, 3), **kwargs):
    conv = module("SynthesisLayer", {"weight": tensor([[1.0, 2.0], [3.0, 4.0]])}, conv_clamp=256)
    blocks = {"b4": module("SynthesisBlock", modules={"conv1": conv}, use_fp16=False), "b8": module("SynthesisBlock", use_fp16=True)}
    synthesis = module("SynthesisNetwork", modules=blocks | (synthesis_parts or {}))
    mapping = module("MappingNetwork", buffers={"w_avg": tensor([0.5, 0.25])}, w_avg_beta=0.998)
    return module(class_name, modules={"synthesis": synthesis, "mapping": mapping}, args=args, kwargs=kwargs)


# ---------------------------------------------------------------- the golden file


def test_golden_records():
    records, meta = read_pickle(GOLDEN)
    assert list(records) == ["G", "D", "G_ema"]
    assert records["G"].class_name == records["G_ema"].class_name == "training.networks.Generator"
    assert records["D"].class_name == "training.networks.Discriminator"
    kwargs = records["G_ema"].kwargs
    assert (kwargs["z_dim"], kwargs["c_dim"], kwargs["w_dim"], kwargs["img_resolution"], kwargs["img_channels"]) == (48, 6, 48, 32, 3)
    assert kwargs["mapping_kwargs"]["num_layers"] == 3 and kwargs["synthesis_kwargs"]["channel_base"] == 512
    assert meta["training_set_kwargs"]["class_name"] == "training.dataset.ImageFolderDataset"
    assert meta["augment_pipe"].class_name == "training.augment.AugmentPipe" and meta["augment_pipe"].kwargs["xflip"] == 1
    assert float(meta["augment_pipe"].tensors["p"]) == pytest.approx(float(np.load(DATA / "sg2_network.npz")["augment_p"]))
    json.dumps([record.kwargs for record in records.values()] + [meta["training_set_kwargs"]])


def test_bytes_and_path_give_the_same():
    a, b = read_pickle(GOLDEN)[0], read_pickle(GOLDEN.read_bytes())[0]
    for name, record in a.items():
        assert record.kwargs == b[name].kwargs
        assert all(torch.equal(tensor, b[name].tensors[key]) for key, tensor in record.tensors.items())


def test_reading_a_network_draws_no_random_number():
    """--resume reads one between the seeding of a training and its first step."""
    before = torch.get_rng_state()
    load_network(GOLDEN)
    assert torch.equal(torch.get_rng_state(), before)


def test_golden_networks_give_the_golden_images():
    expected = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(DATA / "sg2_network.npz").items()}
    loaded = load_network(GOLDEN)
    with torch.no_grad():
        image = loaded.G_ema(expected["z"], expected["c"], noise_mode="const")
        shortened = loaded.G_ema(expected["z"], expected["c"], truncation_psi=0.5, noise_mode="const")
        logits = loaded.D(image, expected["c"])
    for got, key in ((image, "img"), (shortened, "img_psi05"), (logits, "logits")):
        assert (got - expected[key]).abs().max() <= 1e-4 * expected[key].abs().max(), key


def test_command_converts_and_the_networks_stay_the_same(tmp_path):
    target = tmp_path / "y.safetensors"
    result = CliRunner().invoke(legacy_command.main, [f"--source={GOLDEN}", f"--dest={target}"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    records, meta = read_networks(target)
    original, _ = read_pickle(GOLDEN)
    for name, record in original.items():
        assert records[name].kwargs == record.kwargs
        assert all(torch.equal(tensor, records[name].tensors[key]) for key, tensor in record.tensors.items())
    assert meta["training_set_kwargs"]["resolution"] == 32
    golden = np.load(DATA / "sg2_network.npz")
    with torch.no_grad():
        image = load_network(target).G_ema(torch.from_numpy(golden["z"]), torch.from_numpy(golden["c"]), noise_mode="const")
    assert (image - torch.from_numpy(golden["img"])).abs().max() <= 1e-4 * np.abs(golden["img"]).max()


def test_command_forces_fp16_and_refuses_bad_input(tmp_path):
    target = tmp_path / "y.safetensors"
    CliRunner().invoke(legacy_command.main, [f"--source={GOLDEN}", f"--dest={target}", "--force-fp16=True"], catch_exceptions=False)
    records, _ = read_networks(target)
    assert records["G"].kwargs["synthesis_kwargs"]["num_fp16_res"] == records["D"].kwargs["num_fp16_res"] == 4
    assert records["G"].kwargs["synthesis_kwargs"]["conv_clamp"] == records["D"].kwargs["conv_clamp"] == 256
    target.unlink()
    (tmp_path / "torn.pkl").write_bytes(GOLDEN.read_bytes()[:100_000])
    command = [sys.executable, "legacy.py", f"--source={tmp_path / 'torn.pkl'}", f"--dest={target}"]
    result = subprocess.run(command, cwd=DATA.parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "torn.pkl" in result.stderr and result.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["torn.pkl"]


def test_command_says_what_it_writes_and_writes_nothing_that_cannot_be_read(tmp_path, monkeypatch):
    snapshot = tmp_path / "y.pkl"
    said = CliRunner().invoke(legacy_command.main, [f"--source={GOLDEN}", f"--dest={snapshot}"], catch_exceptions=False).output
    assert f"note: {snapshot} will be a safetensors file" in said
    with pytest.raises(UserError, match=r"y\.pkl is a snapshot of this project already"):
        CliRunner().invoke(legacy_command.main, [f"--source={snapshot}", f"--dest={tmp_path / 'z.safetensors'}"], catch_exceptions=False)
    records, meta = read_pickle(GOLDEN)
    tensors = records["G_ema"].tensors
    tensors["synthesis.b4.const"] = torch.zeros(tensors["synthesis.b4.const"].shape[0], 4, 6)  # as forks for rectangles have it
    monkeypatch.setattr(legacy_command, "read_pickle", lambda path: (records, meta))
    with pytest.raises(UserError, match=r"G_ema of --source=.* does not fit .*b4\.const"):
        CliRunner().invoke(legacy_command.main, [f"--source={GOLDEN}", f"--dest={tmp_path / 'z.safetensors'}"], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == [snapshot]


def assert_same_networks(found, expected):
    assert list(found) == list(expected)
    for name in expected.keys() - {"meta"}:
        states = found[name].state_dict(), expected[name].state_dict()
        assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][key], states[1][key]) for key in states[1]), name


def test_notebooks_load_networks_as_they_are_used_to(tmp_path, no_execution):
    expected = load_network(GOLDEN)
    with dnnlib.util.open_url(str(GOLDEN)) as f:
        found = legacy_command.load_network_pkl(f)
    assert_same_networks(found, expected)
    assert not found["G_ema"].training and found.meta["training_set_kwargs"]["resolution"] == 32
    assert_same_networks(legacy_command.load_network_pkl(io.BytesIO(GOLDEN.read_bytes())), expected)
    assert_same_networks(legacy_command.load_network_pkl(str(GOLDEN)), expected)
    snapshot = tmp_path / "y.safetensors"
    save_networks(snapshot, read_pickle(GOLDEN)[0], {})
    with open_url(snapshot) as f:
        assert_same_networks(legacy_command.load_network_pkl(f), expected)


def test_a_hostile_file_object_runs_nothing(no_execution):
    for data in (HOSTILE_BYTES, pickled({"G": HOSTILE["os.system"]}), pickled({"G_ema": generator(class_name="Discriminator")}), b"", b"x" * 100):
        with pytest.raises(UserError):
            legacy_command.load_network_pkl(io.BytesIO(data))
    with pytest.raises(UserError, match="rb"):
        legacy_command.load_network_pkl(io.StringIO("text"))


# ---------------------------------------------------------------- StyleGAN3 and other layouts


def test_positional_arguments_and_defaults_from_the_layers():
    records, meta = read_pickle(pickled({"G_ema": generator()}))
    kwargs = records["G_ema"].kwargs
    assert [kwargs[name] for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")] == [64, 0, 64, 8, 3]
    assert kwargs["synthesis_kwargs"] == {"num_fp16_res": 1, "conv_clamp": 256}
    assert kwargs["mapping_kwargs"] == {"w_avg_beta": 0.998}
    assert torch.equal(records["G_ema"].tensors["synthesis.b4.conv1.weight"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert meta == {"training_set_kwargs": None, "augment_pipe": None}


def test_stylegan3_arguments_are_nested():
    flat = {"channel_base": 16384, "num_fp16_res": 4, "fused_modconv_default": "inference_only", "mapping_kwargs": {"num_layers": 2}}
    kwargs = read_pickle(pickled({"G": generator(**flat)}))[0]["G"].kwargs
    assert kwargs["synthesis_kwargs"] == {"channel_base": 16384, "num_fp16_res": 4, "conv_clamp": 256}
    assert "fused_modconv_default" not in kwargs and "channel_base" not in kwargs
    assert kwargs["mapping_kwargs"] == {"num_layers": 2, "w_avg_beta": 0.998}


def test_strided_windows_and_empty_tensors():
    window = tensor(range(12), size=(2, 2), stride=(1, 4), offset=1)
    empty = tensor(range(12), size=(0, 5), stride=(5, 1))
    parts = {"torgb": module("ToRGBLayer", {"weight": window}, {"empty": empty, "none": None, "gone": tensor([1.0])})}
    tensors = read_pickle(pickled({"G": generator(parts)}))[0]["G"].tensors
    assert torch.equal(tensors["synthesis.torgb.weight"], torch.tensor([[1.0, 5.0], [2.0, 6.0]]))
    assert tensors["synthesis.torgb.weight"].is_contiguous() and tensors["synthesis.torgb.empty"].shape == (0, 5)
    assert "synthesis.torgb.none" not in tensors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"G": generator({"input": module("SynthesisInput")})}, "SynthesisInput"),
        ({"G": generator(magnitude_ema_beta=0.5)}, "magnitude_ema_beta"),
        ({"G": generator(synthesis_kwargs={"WidthPerStage": [1]})}, "WidthPerStage"),
        ({"G": generator(class_name="Discriminator")}, "Discriminator"),
        ({"G": generator(args=(64, 0))}, "w_dim"),
        ({"G": generator(args=(64, 0, 64, 8, 3), z_dim=3)}, "twice"),
        ({"G": generator(args=(64, 0, 64, 8, 3, 7))}, "constructor arguments"),
        ({"D": module("Discriminator", args=(0, 8, 3), kwargs={"block_kwargs": [1]})}, "block_kwargs"),
        ({"G": 5}, "int"),
        ({"G": generator({"torgb": module("ToRGBLayer", buffers={"b": tensor([1.0])}, _non_persistent_buffers_set=5)})}, "ToRGBLayer .* is no set"),
        ({"G": module("Generator", kwargs={"z_dim": b"bytes"})}, "bytes"),
        ({"H": generator()}, "none of the networks"),
        ([1, 2], "list"),
        (Call("torch_utils.persistence._reconstruct_persistent_obj", {"class_name": 3}), "_Module"),
        ({"G": Call("torch_utils.persistence._reconstruct_persistent_obj", {"class_name": 3})}, "class name"),
        ({"G": Call("torch_utils.persistence._reconstruct_persistent_obj", {"class_name": "Generator"})}, "state"),
        ({"G": generator(), "augment_pipe": 1.5}, "augment_pipe"),
        ({"G": generator(), "training_set_kwargs": {"x": generator()}}, "_Module"),
    ],
)
def test_other_contents_are_refused_by_name(content, message):
    with pytest.raises(UserError, match=message):
        read_pickle(pickled(content))


# ---------------------------------------------------------------- hostile files


@pytest.fixture
def no_execution(monkeypatch):
    """Every way out of a pickle that a test could notice rings a bell."""
    rung = []

    def bell(name):
        return lambda *args, **kwargs: rung.append(name)

    for owner, name in (
        (os, "system"),
        (os, "popen"),
        (subprocess, "Popen"),
        (builtins, "eval"),
        (builtins, "exec"),
        (pickle, "loads"),
        (pickle, "load"),
    ):
        monkeypatch.setattr(owner, name, bell(name))
    yield rung
    assert rung == []


HOSTILE = {
    "os.system": Call("os.system", "touch /nowhere"),
    "posix.system": Call("posix.system", "touch /nowhere"),
    "builtins.eval": Call("builtins.eval", "1"),
    "builtins.exec": Call("builtins.exec", "1"),
    "subprocess.Popen": Call("subprocess.Popen", "true"),
    "builtins.getattr": Call("builtins.getattr", "x", "y"),
    "builtins.__import__": Call("builtins.__import__", "os"),
    "operator.attrgetter": Call("operator.attrgetter", "system"),
    "torch.load": Call("torch.load", "file"),
    "torch.storage.os.system": Call("torch.storage.os.system", "true"),
    "torch.hub.load": Call("torch.hub.load", "a", "b"),
    "collections.OrderedDict.fromkeys": Call("collections.OrderedDict.fromkeys", "a"),
    "numpy.core.multiarray._reconstruct": Call("numpy.core.multiarray._reconstruct"),
    "torch_utils.persistence.persistent_class": Call("torch_utils.persistence.persistent_class"),
    "torch._utils._rebuild_parameter.__globals__": Call("torch._utils._rebuild_parameter.__globals__"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_calls_are_refused_by_name(name, no_execution):
    for content in (HOSTILE[name], {"G": HOSTILE[name]}, {"G": generator(), "unused": [HOSTILE[name]]}):
        with pytest.raises(UserError) as error:
            read_pickle(pickled(content))
        assert name in str(error.value) and "nothing of it was run" in str(error.value)


def test_refused_names_cannot_break_the_message():
    with pytest.raises(UserError) as error:
        read_pickle(b"\x80\x04\x8c\x02os\x8c\x12sys\ntem\x1b[31m\xc3\xa9aaaaaa\x93.")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_python_pickles_of_hostile_objects_run_nothing(tmp_path, no_execution):
    (tmp_path / "x.pkl").write_bytes(HOSTILE_BYTES)
    with pytest.raises(UserError, match=r"x\.pkl.*system"):
        read_pickle(tmp_path / "x.pkl")


def test_hostile_storage_runs_nothing(no_execution):
    """The bytes of a tensor are a pickle of their own; torch's plain loader refuses what is not plain."""
    inner = pickled(Call("builtins.eval", "1"))
    whole = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + inner
    for data in (inner, whole, b"", b"PK\x03\x04", b"x" * 1000):
        with pytest.raises(UserError, match="tensor"):
            read_pickle(pickled({"G": Call("torch.storage._load_from_bytes", data)}))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"N" + b"r" + struct.pack("<I", 2**32 - 1) + b".",  # a memo index that would allocate gigabytes
        b"\x80\x02" + b"2" * 10 + b".",  # DUP on an empty stack
        b"\x80\x02" + b"}" + b"0" * 3 + b".",  # POP
        b"\x80\x02N" + b"b" * 2 + b".",  # BUILD without operands
        b"\x80\x02)}b.",  # BUILD on a tuple
        b"\x80\x02}}(]Nu.",  # a list as key
        b"\x80\x02]Ns.",  # SETITEM on the wrong stack
        b"\x80\x02]NNs.",  # SETITEM on a list
        b"\x80\x02}Na.",  # APPEND to a dictionary
        b"\x80\x02(((((((((t.",
        b"\x80\x02t.",
        b"\x80\x02h\x07.",  # a memo entry that was never written
        b"\x80\x02\x85.",
        b"\x80\x02N)R.",  # call of None
        b"\x80\x04\x8c\x01a\x4e\x93.",  # STACK_GLOBAL with None
        b"\x80\x02ios\nsystem\n.",  # INST
        b"\x80\x02Pid\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02ccollections\nOrderedDict\n(Nt)R.",
        b"\x80\x02ccollections\nOrderedDict\nNR.",
        b"\x80\x05\x8e" + struct.pack("<Q", 2**60) + b"x.",  # bytes longer than the file
        b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"x.",
        b"",
        b".",
        b"PK\x03\x04 a zip",
        b"\x89PNG",
    ],
)
def test_damaged_and_twisted_pickles_are_refused(data, no_execution):
    with pytest.raises(UserError, match="nothing of it was run"):
        read_pickle(data)


def test_truncated_anywhere():
    data = GOLDEN.read_bytes()
    for length in [0, 1, 2, 10, 62, 300, 5_000, 69_000, 100_000, 300_000, len(data) - 1]:
        with pytest.raises(UserError):
            read_pickle(data[:length])


def test_flipped_bytes_never_escape_as_other_errors():
    data, random = GOLDEN.read_bytes(), np.random.RandomState(0)
    for _ in range(40):
        damaged = bytearray(data[:70_000] + data[-2_000:])
        for position in random.randint(0, len(damaged), 5):
            damaged[position] = random.randint(256)
        with pytest.raises(UserError):
            read_pickle(bytes(damaged))


def test_bombs_stay_small_and_quick():
    """Nested references that unfold exponentially: as arguments, as modules, and as keys."""
    start = time.process_time()
    lists = b"]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60))
    content = emit({"training_set_kwargs": 7, "G": generator()}).replace(emit(7), b"h\x3c")
    with pytest.raises(UserError, match="deeply"):
        read_pickle(b"\x80\x02(" + lists + b"t" + content + b".")
    shared = emit(module("SynthesisBlock")) + b"q\x00"
    nested = module("SynthesisBlock", modules={"a": 7, "b": 7})
    for i in range(25):
        shared += emit(nested).replace(emit(7), b"h" + bytes([i])) + b"q" + bytes([i + 1])
    bomb = emit({"G": generator({"deep": 7})}).replace(emit("deep") + emit(7), emit("deep") + b"h\x19")
    with pytest.raises(UserError, match="deeply"):
        read_pickle(b"\x80\x02" + shared + bomb + b".")
    tuples = b")q\x00" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(100))
    with pytest.raises(UserError, match="as a key"):
        read_pickle(b"\x80\x02(" + tuples + b"t}h\x64Ns.")
    with pytest.raises(RefusedPickle, match="operations"):
        PickleMachine({}, max_operations=1000).load(b"\x80\x02" + b"N" * 2000 + b".")
    assert time.process_time() - start < 10


def test_tensors_cannot_outgrow_the_file():
    big = 30_000
    empty = [((2**39, 2**39, 0), (1, 1, 1)), ((0, 2**39, 2**39), (0, 0, 0))]
    for size, stride in (((big, big), (0, 0)), ((13,), (1,)), ((2, 7), (6, 1)), ((2**40,), (1,)), ((-1,), (1,)), ((2, 2), (1,)), *empty):
        with pytest.raises(UserError, match="tensor"):
            read_pickle(pickled({"G": tensor(range(12), size=size, stride=stride)} if size != (2**40,) else {"G": HUGE}))
    data = storage_bytes(torch.zeros(4))
    again = emit(Call("torch.storage._load_from_bytes", 7)).replace(emit(7), b"h\x00")
    with pytest.raises(UserError, match="same bytes"):
        read_pickle(b"\x80\x02(" + emit(data) + b"q\x00" + again * 100 + b"t.")


HUGE = Call("torch._utils._rebuild_tensor_v2", None, 0, (1,), (1,), False, None)


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"none\.pkl"):
        read_pickle(tmp_path / "none.pkl")
