"""Batches: the resident and the streaming path agree, ranks share one order, and resuming is exact."""

import gc
import multiprocessing
import pathlib
import random

import numpy as np
import pytest
import torch
from image_sets import pngs, write_zip

from dnnlib import UserError
from training.data_loader import IndexStream, LabelTable, ResidentLoader, StreamingLoader, open_loader, readers_explained, resident_bytes
from training.dataset import ImageFolderDataset

SET = pathlib.Path(__file__).parent / "data" / "dataset_small.zip"


def small_set(**options):
    return ImageFolderDataset(SET, use_labels=True, **options)


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("length", [1, 2])
def test_sets_without_room_for_exchanges_are_walked_in_turn(length):
    rounds = IndexStream(length, seed=5).take(10 * length).reshape(10, length)
    assert (np.sort(rounds, axis=1) == np.arange(length)).all() and (rounds == rounds[0]).all()


def test_chunks_make_no_difference():
    whole = IndexStream(23, seed=1).take(300)
    stream = IndexStream(23, seed=1)
    chunks = np.concatenate([stream.take(count) for count in (1, 64, 7, 100, 128)])
    np.testing.assert_array_equal(chunks, whole)


def test_image_never_returns_within_half_a_round():
    walk = IndexStream(40, seed=2).take(4000)
    gaps = np.concatenate([np.diff(np.flatnonzero(walk == index)) for index in range(40)])
    assert gaps.min() >= 21
    assert np.bincount(walk, minlength=40).min() >= 50


def test_rounds_differ_and_seeds_differ():
    stream = IndexStream(50, seed=0)
    first, second = stream.take(50), stream.take(50)
    assert (first != second).any()
    assert (IndexStream(50, seed=1).take(50) != first).any()


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_share_one_order(replicas):
    alone = IndexStream(23, seed=4).take(12 * replicas)
    parts = [IndexStream(23, seed=4, rank=rank, num_replicas=replicas) for rank in range(replicas)]
    together = np.stack([np.concatenate([part.take(5), part.take(7)]) for part in parts], axis=1).reshape(-1)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("options", [{}, {"xflip": True}, {"xflip": True, "max_size": 9, "random_seed": 3}])
@pytest.mark.parametrize("workers", [0, 2])
def test_resident_equals_streaming(options, workers):
    resident = open_loader(small_set(**options), 8, "cpu", seed=1, resident=True)
    streaming = open_loader(small_set(**options), 8, "cpu", seed=1, resident=False, workers=workers)
    for _ in range(12):
        a, b = next(resident), next(streaming)
        assert same(a, b)
    assert a[0].dtype == torch.uint8 and a[0].shape == (8, 3, 16, 16)
    assert a[1].dtype == torch.float32 and a[1].shape == (8, 5)
    streaming.close()


def test_batches_are_the_items_of_the_set():
    dataset = small_set(xflip=True)
    images, labels = next(open_loader(dataset, 46, "cpu", seed=7, resident=True))
    for row, index in enumerate(IndexStream(46, seed=7).take(46)):
        np.testing.assert_array_equal(images[row].numpy(), dataset[index][0])
        np.testing.assert_array_equal(labels[row].numpy(), dataset[index][1])


@pytest.mark.parametrize(("before", "after"), [(True, True), (False, False), (True, False), (False, True)])
def test_resume_goes_on_with_the_next_batch(before, after, tmp_path):
    loader = open_loader(small_set(), 4, "cpu", seed=3, resident=before, workers=1)
    for _ in range(9):
        next(loader)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    expected = [next(loader) for _ in range(9)]
    resumed = open_loader(small_set(), 4, "cpu", seed=99, resident=after, workers=1)
    next(resumed)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(same(next(resumed), batch) for batch in expected)
    loader.close()
    resumed.close()


def test_state_of_another_set_is_refused():
    state = open_loader(small_set(), 4, "cpu").state_dict()
    with pytest.raises(UserError, match=r"data set of 23 items .* has 46"):
        open_loader(small_set(xflip=True), 4, "cpu").load_state_dict(state)


@pytest.mark.parametrize("resident", [True, False])
def test_global_generators_are_left_alone(resident):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    loader = open_loader(small_set(), 4, "cpu", resident=resident, workers=1)
    for _ in range(3):
        next(loader)
    loader.close()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


@pytest.mark.parametrize("workers", [0, 1])
def test_torn_image_while_streaming_is_one_sentence(tmp_path, workers):
    files = pngs(4)
    files["00000/img00000002.png"] = files["00000/img00000002.png"][:300]
    dataset = ImageFolderDataset(write_zip(tmp_path / "set.zip", files))
    loader = open_loader(dataset, 4, "cpu", resident=False, workers=workers)
    with pytest.raises(UserError, match=r"^00000/img00000002\.png in .*torn image") as caught:
        next(loader)
    loader.close()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"img00000002\.png"):
        open_loader(dataset, 4, "cpu", resident=True)


def full(_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_a_batch_without_room_in_shared_memory_is_one_sentence(monkeypatch):
    """The queue that would bring it loses it, and its receiver would wait without end."""
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    loader = open_loader(small_set(), 4, "cpu", resident=False, workers=1)
    with pytest.raises(UserError, match=r"No space left on device \(28\)\); .*--shm-size=8g\), or take fewer --workers") as caught:
        next(loader)
    assert "\n" not in str(caught.value) and isinstance(caught.value.__cause__, RuntimeError)
    loader.close()
    assert next(open_loader(small_set(), 4, "cpu", resident=False, workers=0))[0].shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"),
            "DataLoader worker (pid 7) is killed by signal: Bus error",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (EOFError(), "EOFError"),
    ],
)
def test_the_end_of_a_worker_is_one_sentence(error, reason):
    loader = open_loader(small_set(), 4, "cpu", resident=False)
    loader._batches = raising(error)
    with pytest.raises(UserError) as caught:
        next(loader)
    assert str(caught.value).startswith(f"a process that reads images is lost ({reason}); ") and caught.value.__cause__ is error


def test_other_errors_are_not_taken_for_the_end_of_a_worker():
    for error in (RuntimeError("out of resource: shared memory, Required: 262144"), ConnectionResetError(104, "Connection reset by peer")):
        with pytest.raises(type(error)) as caught, readers_explained():
            raise error
        assert caught.value is error


def test_the_other_workers_end_after_one_is_lost(monkeypatch):
    """The error may live to the end of the process, which waits for all of them."""
    before = set(multiprocessing.active_children())
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    loader = open_loader(small_set(), 4, "cpu", resident=False, workers=1)
    gc.disable()
    try:
        with pytest.raises(UserError) as kept:
            next(loader)
        loader.close()
        assert set(multiprocessing.active_children()) == before
    finally:
        gc.enable()
    assert kept.value.__traceback__ is not None


def raising(error):
    """An iterator that raises."""
    raise error
    yield


def test_small_sets_become_resident(monkeypatch):
    dataset = small_set(xflip=True)
    assert resident_bytes(dataset) == 23 * 3 * 16 * 16 + 46 * 8
    assert isinstance(open_loader(dataset, 4, "cpu"), ResidentLoader)
    monkeypatch.setattr("training.data_loader.RESIDENT_BYTES", 1000)
    assert isinstance(open_loader(dataset, 4, "cpu"), StreamingLoader)


def test_labels_on_a_device_are_those_of_the_set(tmp_path):
    files = pngs(6)
    vectors = write_zip(tmp_path / "set.zip", files, [[name, [0.5, index, -1]] for index, name in enumerate(files)])
    for dataset in (small_set(xflip=True), ImageFolderDataset(SET), ImageFolderDataset(vectors, use_labels=True)):
        table, some = LabelTable(dataset, torch.device("cpu")), torch.tensor([3, 0, 3, 5])
        assert len(table) == len(dataset)
        np.testing.assert_array_equal(table[some].numpy(), dataset.get_labels(some.numpy()))


def test_batch_size_below_one():
    with pytest.raises(UserError, match="batch size per process is 0"):
        open_loader(small_set(), 0, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_batches_equal_cpu_batches(resident):
    on_cpu = open_loader(small_set(xflip=True), 8, "cpu", seed=1, resident=True)
    on_gpu = open_loader(small_set(xflip=True), 8, "cuda", seed=1, resident=resident, workers=1)
    for _ in range(8):
        a, b = next(on_cpu), next(on_gpu)
        assert b[0].device.type == b[1].device.type == "cuda"
        assert same(a, (b[0].cpu(), b[1].cpu()))
    on_gpu.close()
