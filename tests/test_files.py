"""Names of files and folders: a user's home, names that are none, and caches that are not made before there is something to keep."""

import pathlib

import click
import pytest
import torch

from dnnlib import UserError, atomic_path
from dnnlib.cli import run_command
from metrics.feature_cache import FeatureCache


@pytest.mark.parametrize(("typed", "read"), [("~/runs", "HOME/runs"), ("runs/~/x", "runs/~/x"), ("~", "~"), ("a=~/b", "a=~/b")])
def test_home_is_found_behind_an_option(monkeypatch, tmp_path, typed, read):
    """Shells leave ~ alone in --outdir=~/runs, and a folder of that name would be made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []
    command = click.Command("it", params=[click.Option(["--outdir"])], callback=lambda outdir: seen.append(outdir))
    with pytest.raises(SystemExit):
        run_command(command, [f"--outdir={typed}"])
    assert seen == [read.replace("HOME", str(tmp_path))]


def test_a_folder_without_a_name_is_no_file():
    with pytest.raises(UserError, match=r"cannot write \.: it names no file"), atomic_path("."):
        pass


def test_a_cache_is_made_when_there_is_something_to_keep(monkeypatch, tmp_path):
    """A home that cannot be written costs time and no figures."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    key = {"detector": "x"}
    cache = FeatureCache()
    assert cache.load(key) is None and not (tmp_path / "cache").exists()
    cache.save(key, {"rows": torch.zeros(2, 3)})
    assert cache.load(key)["rows"].shape == (2, 3)
    lines, blocked = [], pathlib.Path(tmp_path / "file")
    blocked.write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(blocked / "cache"))
    cache = FeatureCache(log=lines.append)
    assert cache.load(key) is None
    cache.save(key, {"rows": torch.zeros(2, 3)})
    assert "are not kept" in lines[0]
