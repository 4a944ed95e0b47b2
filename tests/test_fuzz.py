"""Whatever bytes a reader is given, it takes them or refuses them in one sentence: no crash, no code run, no file elsewhere, memory bounded."""

import io
import mmap
import os
import pathlib
import pickle
import random
import signal
import zipfile

import pytest

from bench import fuzz, fuzz_inputs
from bench.fuzz_readers import make_reader, reader_names

INPUTS = 28  # 500 in all
PEAK_MB = 1200  # PIL takes pictures of up to 179 million pixels; of a data set an eighth of that is taken
LONG_PEAK_MB = 2200  # the largest of such pictures have 716 MB with alpha, and are converted: 1,875 MB were seen among 10,000 PNGs
# Inputs that once brought something else than a sentence out of a reader: reader, seed, number of the input.
FOUND = [
    ("data set zip", 0, 133),  # a member without a name
    ("TorchScript detector", 1, 40),  # a member's name that is no UTF-8
    ("run options", 1, 84),  # a seed that is a table
    ("run lines", 1, 19),  # a snapshot's name that is a table
    ("result files", 1, 408),  # a sentence of thousands of characters
    ("feature cache", 1, 272),  # likewise
    ("projected w", 1, 222),  # a header that is no Python
]


@pytest.fixture(scope="module")
def watch():
    return fuzz.Watch()


@pytest.mark.parametrize("name", reader_names())
def test_damaged_and_hostile_files(name, watch, tmp_path, capfd):
    outcome = fuzz.fuzz(make_reader(name, tmp_path / "reader"), INPUTS, 0, watch)
    assert outcome.is_clean, (outcome.crashes + outcome.executions + outcome.escapes)[:3]
    assert outcome.inputs == INPUTS == outcome.refused + outcome.accepted and outcome.refused > 0
    assert outcome.peak < PEAK_MB and outcome.longest < fuzz.SECONDS


@pytest.mark.parametrize(("name", "seed", "index"), FOUND)
def test_what_was_found_once(name, seed, index, watch, tmp_path):
    outcome = fuzz.fuzz(make_reader(name, tmp_path / "reader"), 1, seed, watch, first=index)
    assert outcome.is_clean, outcome.crashes


@pytest.mark.slow
@pytest.mark.parametrize("name", reader_names())
def test_ten_thousand_of_each(name, tmp_path):
    outcome = fuzz.fuzz_apart(name, 10_000, 0, tmp_path)
    print(fuzz.table_row(outcome))
    assert outcome.is_clean, (outcome.crashes + outcome.executions + outcome.escapes)[:3]
    assert outcome.inputs == 10_000 and outcome.peak < LONG_PEAK_MB


def test_the_same_seed_gives_the_same_inputs(tmp_path):
    reader = make_reader("data set zip", tmp_path / "reader")
    a, b, other = ([reader.damage(random.Random(f"{seed} {index}"), reader.seeds[0]) for index in range(50)] for seed in (0, 0, 1))
    assert a == b != other
    assert len(set(a)) > 40


class _Fake:
    """A reader of one's own."""

    name, seeds = "fake", [b"sound"]

    def __init__(self, folder, read):
        folder.mkdir()
        self.folder, self.path, self.canary = folder, folder / "x", folder.parent / "canary"
        self.read = lambda path: None if path.read_bytes() == b"sound" else read(path)

    def damage(self, r, data):
        return data + b"!"


def test_the_watch_sees_what_must_not_happen(watch, tmp_path):
    """Readers that fail in each of the ways that are counted."""
    elsewhere = tmp_path / "elsewhere"
    hostile = pickle.dumps({"x": _Touch(str(tmp_path / "canary"))})
    ways = {
        "crashes": lambda path: {}["x"],
        "executions": lambda path: os.system("true"),
        "escapes": lambda path: elsewhere.write_text("x"),
    }
    for index, (kind, read) in enumerate(ways.items()):
        outcome = fuzz.fuzz(_Fake(tmp_path / str(index), read), 2, 0, watch)
        assert len(getattr(outcome, kind)) == 2 and not outcome.is_clean
        assert sum(bool(found) for found in (outcome.crashes, outcome.executions, outcome.escapes)) == 1
    careless = fuzz.fuzz(_Fake(tmp_path / "pickle", lambda path: pickle.loads(hostile)), 1, 0, watch)
    assert any("canary" in text for text in careless.executions) and careless.escapes
    inside = fuzz.fuzz(_Fake(tmp_path / "inside", lambda path: (path.parent / "y").write_text("x")), 1, 0, watch)
    assert inside.is_clean and inside.accepted == 1
    slip = fuzz.fuzz(_Fake(tmp_path / "slip", lambda path: (path.parent / ".." / "y").write_text("x")), 1, 0, watch)
    assert slip.escapes


def test_a_reader_that_hangs_is_ended_and_the_handler_that_was_there_comes_back(watch, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)

    def spin(path):
        while True:
            pass

    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        outcome = fuzz.fuzz(_Fake(tmp_path / "hang", spin), 2, 0, watch)
        assert signal.getsignal(signal.SIGPROF) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGPROF, before)
    assert len(outcome.crashes) == 2 and "Hang" in outcome.crashes[0]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot begin anew here")
def test_the_peak_is_that_of_this_reader(watch, tmp_path):
    """What the process held before does not hide what the reader takes, and is not counted as its own."""

    def hold(size):
        with mmap.mmap(-1, size) as memory:  # from the system and back to it: malloc may keep what it has
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 1

    hold(300_000_000)
    modest = fuzz.fuzz(_Fake(tmp_path / "modest", lambda path: None), 1, 0, watch)
    greedy = fuzz.fuzz(_Fake(tmp_path / "greedy", lambda path: hold(200_000_000)), 1, 0, watch)
    assert modest.peak < 50 and 150 < greedy.peak < 280


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_structured_damage_keeps_what_it_should():
    """Changed formats still have their checksums right often enough that the damage gets past them."""
    r = random.Random(0)
    sound = fuzz_inputs.packed({"a.png": b"x" * 50, "b.png": b"y" * 50, "dataset.json": b'{"labels": null}'})
    opened = 0
    for _ in range(100):
        try:
            with zipfile.ZipFile(io.BytesIO(fuzz_inputs.odd_zip(r, sound))) as archive:
                opened += archive.testzip() is None
        except Exception:
            continue
    assert 20 < opened < 90
