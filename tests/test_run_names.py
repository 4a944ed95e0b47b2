"""Names of run folders: what was given explicitly is in them, and each run has a number of its own."""

import pytest

from dnnlib import EasyDict, UserError
from training import run_names
from training.options import Options
from training.run_files import RunDir


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, "pics-auto1"),
        (dict(gpus=2, cond=True, mirror=True), "pics-cond-mirror-auto2"),
        (dict(cfg="cifar", subset=500, gpus=2), "pics-subset500-cifar"),
        (dict(gamma=0.01, kimg=100, batch=32), "pics-auto1-gamma0.01-kimg100-batch32"),
        (dict(aug="fixed", p=0.25, augpipe="blit"), "pics-auto1-fixed-p0.25-blit"),
        (dict(aug="ada", target=0.7, freezed=10, resume="ffhq256"), "pics-auto1-ada-target0.7-resumeffhq256-freezed10"),
        (dict(resume="some.pkl"), "pics-auto1-resumecustom"),
        (dict(resume="noresume"), "pics-auto1-noresume"),
        (dict(pairing_weight=0.05), "pics-auto1-pairing0.05"),
        (dict(objective="relativistic", r2_gamma=0.5, ms_weight=1.0), "pics-auto1-ms1-relativistic-r2gamma0.5"),
        (dict(snap=1, tick=1, metrics=[], seed=5, workers=1, cond=False, mirror=False), "pics-auto1"),
    ],
)
def test_run_names_say_what_was_given(typed, expected):
    options = Options(outdir="out", data="pics.zip", **typed)
    assert run_names.run_description(options, set(typed), "pics") == expected


def test_a_run_is_numbered_one_past_the_highest(tmp_path):
    assert run_names.next_run_dir(str(tmp_path / "absent"), "x") == str(tmp_path / "absent" / "00000-x")
    for name in ("00000-a", "00007-b", "notes", "12-short"):
        (tmp_path / name).mkdir()
    assert run_names.next_run_dir(str(tmp_path), "x") == str(tmp_path / "00013-x")


def test_a_number_is_taken_by_whatever_has_it(tmp_path):
    (tmp_path / "00000-x").symlink_to(tmp_path / "moved away")
    assert run_names.next_run_dir(str(tmp_path), "x") == str(tmp_path / "00001-x")
    (tmp_path / "00001-x").write_text("")
    assert run_names.next_run_dir(str(tmp_path), "x") == str(tmp_path / "00002-x")
    with run_names.reserved_run_dir(str(tmp_path), "x") as reserved:
        assert reserved == str(tmp_path / "00002-x")


def test_runs_that_start_together_get_numbers_of_their_own(tmp_path, monkeypatch):
    place = tmp_path / "runs"
    with run_names.reserved_run_dir(str(place), "x") as first, run_names.reserved_run_dir(str(place), "y") as second:
        assert (first, second) == (str(place / "00000-x"), str(place / "00001-y"))
        RunDir.create(EasyDict(run_dir=first))  # takes the place of the empty folder
        numbers = [second, str(place / "00002-x")]
        monkeypatch.setattr(run_names, "next_run_dir", lambda *_: numbers.pop(0))
        with run_names.reserved_run_dir(str(place), "y") as third:  # the second number was taken between the look and the grasp
            assert third == str(place / "00002-x")
    assert [path.name for path in place.iterdir()] == ["00000-x"]


def test_a_place_that_nothing_was_written_to_does_not_stay(tmp_path):
    with pytest.raises(KeyError), run_names.reserved_run_dir(str(tmp_path / "runs"), "x"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--outdir: cannot create"), run_names.reserved_run_dir(str(tmp_path / "file"), "x"):
        raise AssertionError
