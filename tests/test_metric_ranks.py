"""Measuring by several ranks: the figures of one, and errors that all of them learn of; and the precision that all of them compute in."""

import dataclasses
import datetime
import json
import pathlib

import pytest
import torch
from metric_parts import Data, TinyGenerator, one_thread, results, write_detectors

from dnnlib import EasyDict, UserError
from metrics import protocols, registry
from metrics.detectors import trust_detector
from metrics.features import full_precision
from torch_utils.distributed import leave


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return write_detectors(tmp_path_factory.mktemp("detectors"))


def _rank_main(rank, store, detector, cache, output):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trust_detector(detector, remember=False)
    figures, *looked_at = _small_measurement(detector, cache)
    pathlib.Path(output, f"rank{rank}.json").write_text(json.dumps([figures, *looked_at]))
    leave()  # together: a rank that goes while another still talks to it may abort


RANK_METRICS = ("fid50k_full", "prdc10k5", "collision", "coverage_classwise", "pairing_acc")


def _small_measurement(detector, cache):
    """(figures, real images read, images generated for features) of this rank. 150 images and 70 in batches of 16: uneven last rounds."""
    for name in RANK_METRICS:
        changes = {"num_fake": 64, "parameters": {"steps": 3, "batch": 4, "held_out": 2}} if name == "pairing_acc" else {"num_fake": 70}
        changes |= {"matched": False}
        protocols.METRICS[name] = dataclasses.replace(protocols.METRICS[name], **changes)
    data, G = _PlainData(), TinyGenerator()
    options = {"dataset": data, "device": "cpu", "detector": detector, "batch_detector": 16, "cache_dir": cache}
    figures = results(registry.compute_metrics(RANK_METRICS[:-1], G=G, **options))
    return figures | results(registry.compute_metrics(RANK_METRICS[-1:], G=TinyGenerator(), **options)), data.read, G.made


class _PlainData(Data):
    def fingerprint(self):
        return "the same in every process"


def test_two_ranks_give_the_figures_of_one(scripts, tmp_path, monkeypatch):
    for name in RANK_METRICS:
        monkeypatch.setitem(protocols.METRICS, name, protocols.METRICS[name])
    detector = str(scripts / "detector.pt")
    arguments = (str(tmp_path / "store"), detector, str(tmp_path / "cache-of-two"), str(tmp_path))
    torch.multiprocessing.spawn(_rank_main, args=arguments, nprocs=2)
    with one_thread():
        expected, *all_images = _small_measurement(detector, str(tmp_path / "cache-of-one"))
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0][0] == ranks[1][0] == pytest.approx(expected, rel=1e-12)
    # No image is looked at twice, by whichever rank.
    assert [sum(counts) for counts in zip(*(rank[1:] for rank in ranks))] == all_images == [150, 70]


def _failing_rank_main(rank, store, detector, output):
    """What a rank gets where something fails on one of the two only."""
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=120)  # with which a rank waits for one that has gone another way
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)
    trust_detector(detector, remember=False)
    for name in ("fid50k_full", "coverage"):
        protocols.METRICS[name] = dataclasses.replace(protocols.METRICS[name], num_fake=70)

    def broken(inputs, protocol):
        raise ValueError("no\nmatrix")

    def fails_on(number, function):
        def run(*arguments, **options):
            if rank == number:
                raise UserError(f"rank {number} has no such file")
            return function(*arguments, **options)

        return run

    def measure(*names, dataset=None, on_failure=None, **options):
        """(metrics that were measured, what was said of the others or raised)."""
        told = []
        options |= {"G": TinyGenerator(), "device": "cpu", "detector": detector, "cache": False, "batch_detector": 16}
        try:
            take = (lambda name, error: told.append(f"{name}: {error}")) if on_failure else None
            lines = registry.compute_metrics(names, dataset=dataset or _PlainData(), on_failure=take, **options)
            return [line["metric"] for line in lines], told
        except UserError as error:
            return [], [str(error)]

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(protocols.METRICS, "coverage", dataclasses.replace(protocols.METRICS["coverage"], figures=broken))
        found["metric"] = measure("coverage", "fid50k_full", on_failure=True)
    for name, options in {"told": {"on_failure": True}, "raised": {}}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_load_detector", fails_on(1, registry._load_detector))
            found[name] = measure("fid50k_full", **options)
    data = _PlainData()
    data.__class__ = type("Damaged", (_PlainData,), {"__getitem__": fails_on(1, _PlainData.__getitem__)})
    found["pass"] = measure("fid50k_full", dataset=data, on_failure=True)
    found["data set"] = measure("fid50k_full", make_dataset=fails_on(0, lambda **overrides: _PlainData()), on_failure=True)
    pathlib.Path(output, f"rank{rank}.json").write_text(json.dumps(found))
    leave()  # together: a rank that goes while another still talks to it may abort


def test_what_fails_on_one_rank_fails_on_all_alike(scripts, tmp_path):
    torch.multiprocessing.spawn(_failing_rank_main, args=(str(tmp_path / "store"), str(scripts / "detector.pt"), str(tmp_path)), nprocs=2)
    found, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    failed = "coverage_detector: coverage_detector cannot be computed: ValueError (no matrix)"
    assert found == {
        "metric": [["fid50k_full_detector"], [failed]],
        "told": [[], ["fid50k_full_detector: rank 1 has no such file"]],
        "raised": [[], ["rank 1 has no such file"]],
        "pass": [[], ["rank 1 has no such file"]],
        "data set": [[], ["rank 0 has no such file"]],
    }
    assert other == found


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch 2.9 or newer")
@pytest.mark.parametrize("old", [False, True])
def test_full_precision_is_switched_on_and_the_settings_come_back(old):
    """Whether TF32 was allowed by the flags of before PyTorch 2.9 or by the names since."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        if old:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        else:
            for place in places:
                place.fp32_precision = "tf32"
        with full_precision():
            assert [place.fp32_precision for place in places] == ["ieee"] * 3
            # Whoever asks by the flags gets the same answer, and no error about names that contradict them.
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert [place.fp32_precision for place in places] == ["tf32"] * 3
        if old:
            assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before  # which sets the newer names, too


def test_full_precision_without_the_newer_names(monkeypatch):
    matmul, cudnn = EasyDict(allow_tf32=True), EasyDict(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cuda", EasyDict(matmul=matmul))
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    with full_precision():
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
