"""The command calc_metrics.py: a network file and a data set in, a table, JSON lines and metric-*.jsonl out; mistakes end in one sentence."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from image_sets import png, pngs, write_folder, write_zip
from PIL import Image

import calc_metrics
from dnnlib import UserError
from metrics.detectors import trust_detector
from metrics.sides import selection
from torch_utils.checkpoint import save_networks
from training import metric_sides
from training.networks import Generator, network_record

COUNT, CLASSES, RESOLUTION = 24, 2, 8


class Detector(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.to(torch.float32), 4).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run directory with a tiny conditional network, the data set it was trained on, and a detector."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for index in range(COUNT):
            with archive.open(f"{index:03d}.png", "w") as handle:
                Image.fromarray(rng.integers(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)).save(handle, "png")
        labels = [[f"{index:03d}.png", index % CLASSES] for index in range(COUNT)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    torch.jit.script(Detector()).save(str(folder / "pool.pt"))
    trust_detector(str(folder / "pool.pt"), remember=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        G = Generator(8, CLASSES, 8, RESOLUTION, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs={"channel_base": 64, "channel_max": 8})
    meta = {"training_set_kwargs": {"path": str(folder / "data.zip"), "use_labels": True, "max_size": 10, "xflip": True, "random_seed": 1}}
    save_networks(folder / "network-snapshot-000004.safetensors", {"G_ema": network_record(G)}, meta)
    save_networks(folder / "no-data.safetensors", {"G_ema": network_record(G)}, {})
    (folder / "training_options.json").write_text("{}")
    return folder


@pytest.fixture
def call(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments, network="network-snapshot-000004.safetensors", detector="pool.pt"):
        command = [f"--network={folder / network}"] if network else []
        command += [f"--detector={folder / detector}"] if detector else []
        result = CliRunner().invoke(calc_metrics.main, [*command, "--device=cpu", "--verbose=0", *arguments])
        if isinstance(result.exception, UserError):
            raise result.exception
        return result

    return run


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_figures_are_printed_and_kept_beside_the_network(call, folder):
    result = call("--metrics=coverage,prdc10k5,density50k3")
    assert result.exit_code == 0, result.output
    lines = json_lines(result.stdout)
    assert [line["metric"] for line in lines] == ["coverage_pool", "prdc10k5_pool", "density50k3_pool"]
    assert "coverage_pool" in result.stdout.splitlines()[1]
    for line in lines:
        kept = (folder / f"metric-{line['metric']}.jsonl").read_text().splitlines()
        assert json.loads(kept[-1]) == line
        assert line["snapshot_pkl"] == "network-snapshot-000004.safetensors"
        # The whole set, unflipped, whatever part of it the training took.
        assert (line["protocol"]["n_real"], line["protocol"]["n_fake"], line["protocol"]["xflip"]) == (COUNT, COUNT, False)
        assert all(np.isfinite(value) for value in line["results"].values())


def test_the_same_command_gives_the_same_figures(call):
    first, again, other = (json_lines(call("--metrics=prdc10k5", f"--metric-seed={seed}", "--batch=5").stdout)[0] for seed in (1, 1, 2))
    assert first["results"] == again["results"]
    assert (first["protocol"]["seed"], other["protocol"]["seed"]) == (1, 2)


def test_nothing_is_written_beside_a_network_outside_of_a_run(call, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    network = tmp_path / "elsewhere" / "network.safetensors"
    network.write_bytes((folder / "network-snapshot-000004.safetensors").read_bytes())
    (line,) = json_lines(call("--metrics=coverage", "--no-cache", network=network).stdout)
    assert line["snapshot_pkl"] == str(network)
    assert list(network.parent.iterdir()) == [network]


def test_other_data_can_be_named(call, folder):
    (line,) = json_lines(call("--metrics=coverage", f"--data={folder / 'data.zip'}", network="no-data.safetensors").stdout)
    assert line["protocol"]["n_real"] == COUNT


def test_mirror_replaces_what_the_training_did():
    meta = {"training_set_kwargs": {"path": "a", "xflip": False, "class_name": "x"}}
    kwargs = metric_sides.dataset_kwargs(meta, Generator(4, 0, 4, 8, 3), None, mirror=True)
    assert kwargs == {"path": "a", "xflip": True, "use_labels": False}


# Several snapshots.


@pytest.fixture
def runs(folder, tmp_path):
    """Two run directories with snapshots at 4, 12 and 100 kimg and one at 8."""
    for name, kimgs in (("00000-a", (4, 12, 100)), ("00001-b", (8,))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_options.json").write_text("{}")
        for kimg in kimgs:
            shutil.copy(folder / "network-snapshot-000004.safetensors", tmp_path / name / f"network-snapshot-{kimg:06d}.safetensors")
    return tmp_path


def kept(run, metric="coverage_pool"):
    path = run / f"metric-{metric}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_run_directory_gives_all_its_snapshots_in_order(call, runs):
    result = call("--metrics=coverage", network=runs / "00000-a")
    assert result.exit_code == 0
    assert [line["snapshot_pkl"] for line in kept(runs / "00000-a")] == [f"network-snapshot-{kimg:06d}.safetensors" for kimg in (4, 12, 100)]
    assert [line["snapshot_pkl"] for line in json_lines(result.stdout)] == [line["snapshot_pkl"] for line in kept(runs / "00000-a")]


def test_patterns_name_networks_and_run_directories(runs):
    names = [(path.parent.name, path.name[17:23]) for path in map(pathlib.Path, metric_sides.find_networks(f"{runs}/0000*"))]
    assert names == [("00000-a", "000004"), ("00000-a", "000012"), ("00000-a", "000100"), ("00001-b", "000008")]
    files = metric_sides.find_networks(f"{runs}/*/network-snapshot-00000*")
    assert [pathlib.Path(path).name[17:23] for path in files] == ["000004", "000008"]
    for given in (str(runs / "cache"), f"{runs}/none*"):
        (runs / "cache").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"holds no network-snapshot-\*"):
            metric_sides.find_networks(given)


def test_measuring_goes_on_where_it_stopped(call, runs):
    call("--metrics=coverage", network=runs / "00000-a" / "network-snapshot-000012.safetensors")
    path = runs / "00000-a" / "metric-coverage_pool.jsonl"
    with open(path, "a") as handle:
        handle.write('{"results": {"coverage_')  # what a killed process leaves
    result = call("--metrics=coverage,density50k3", "--verbose=1", network=f"{runs}/0000*")
    assert "1 of 2 metrics are in its metric-*.jsonl by the same protocol and are skipped" in result.stderr
    assert sorted(line["snapshot_pkl"][17:23] for line in kept(runs / "00000-a")) == ["000004", "000012", "000100"]
    assert [line["snapshot_pkl"][17:23] for line in kept(runs / "00000-a", "density50k3_pool")] == ["000004", "000012", "000100"]
    assert len(kept(runs / "00001-b")) == 1
    assert json_lines(call("--metrics=coverage,density50k3", network=f"{runs}/0000*").stdout) == []


def test_another_protocol_is_measured_again(call, runs):
    call("--metrics=coverage", network=runs / "00000-a")
    call("--metrics=coverage", "--metric-seed=1", network=runs / "00000-a")
    assert [line["protocol"]["seed"] for line in kept(runs / "00000-a")] == [0, 0, 0, 1, 1, 1]


def test_what_was_measured_by_another_protocol_meanwhile_is_measured_again(call, runs):
    for seed in (0, 1, 0):
        call("--metrics=coverage", f"--metric-seed={seed}", network=runs / "00001-b")
    assert [line["protocol"]["seed"] for line in kept(runs / "00001-b")] == [0, 1, 0]  # the last of which is the one that counts


def test_a_run_directory_is_passed_over_where_a_single_network_is_measured(call, runs):
    for expected in (1, 0):
        assert len(json_lines(call("--metrics=coverage", network=runs / "00001-b").stdout)) == expected
    (network,) = (runs / "00001-b").glob("network-snapshot-*")
    assert len(json_lines(call("--metrics=coverage", network=network).stdout)) == 1


def test_networks_with_and_without_labels_are_measured_against_the_same_data(call, folder, tmp_path):
    synthesis = {"channel_base": 64, "channel_max": 8}
    for name, classes in (("cond", CLASSES), ("plain", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_options.json").write_text("{}")
        G = Generator(8, classes, 8, RESOLUTION, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=synthesis)
        meta = {"training_set_kwargs": {"path": str(folder / "data.zip"), "use_labels": classes > 0}}
        save_networks(tmp_path / name / "network-snapshot-000001.safetensors", {"G_ema": network_record(G)}, meta)
    first, second = (call("--metrics=coverage", "--verbose=1", network=tmp_path / name) for name in ("cond", "plain"))
    assert json_lines(first.stdout)[0]["protocol"] == json_lines(second.stdout)[0]["protocol"]
    assert "using cached features" in second.stderr


def test_labels_that_no_figure_needs_may_be_broken(call, tmp_path):
    files = {f"{index}.png": png(index, size=(8, 8)) for index in range(20)}
    table = {"labels": [["absent.png", 0], *([name, 0] for name in files)]}
    broken = write_zip(tmp_path / "broken.zip", {**files, "dataset.json": json.dumps(table).encode()})
    (line,) = two_sides(call, broken, broken, "--metrics=fid10k")
    assert line["results"]["fid10k_pool"] == pytest.approx(0, abs=1e-6)
    for needing in (lambda: two_sides(call, broken, broken, "--metrics=fid10k_classwise"), lambda: call(*save_of(broken, tmp_path), network=None)):
        with pytest.raises(UserError, match="names 1 of 21 files that do not exist"):
            needing()


def save_of(images, folder):
    return f"--real={images}", f"--save-features={folder / 'features.safetensors'}"


def test_a_damaged_snapshot_does_not_take_the_others_along(call, runs):
    (runs / "00000-a" / "network-snapshot-000012.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"1 of 3 networks could not be measured, the first of them .*000012"):
        call("--metrics=coverage", network=runs / "00000-a")
    assert [line["snapshot_pkl"][17:23] for line in kept(runs / "00000-a")] == ["000004", "000100"]


# Any two sides.


@pytest.fixture
def pictures(tmp_path):
    """A folder of images of a size that no network here makes, and a zip of the same number of others."""
    write_folder(tmp_path / "folder", pngs(20, size=(12, 10)))
    return tmp_path / "folder", write_zip(tmp_path / "set.zip", {f"{index}.png": png(100 + index, size=(12, 10)) for index in range(20)})


def two_sides(call, real, fake, *options, **others):
    return json_lines(call(f"--real={real}", f"--fake={fake}", *options, network=None, **others).stdout)


def test_two_sets_of_images_of_any_size_are_compared(call, pictures):
    (line,) = two_sides(call, *pictures, "--metrics=prdc10k5")
    assert (line["real"], line["fake"], line["snapshot_pkl"]) == (*map(str, pictures), None)
    assert (line["protocol"]["n_real"], line["protocol"]["n_fake"]) == (20, 20)
    (same,) = two_sides(call, pictures[0], pictures[0], "--metrics=fid50k_full")
    assert same["results"]["fid50k_full_pool"] == pytest.approx(0, abs=1e-6)


def test_a_network_is_compared_with_images_as_with_its_data(call, folder):
    network = folder / "network-snapshot-000004.safetensors"
    lines = two_sides(call, folder / "data.zip", network, "--metrics=prdc10k5,fid10k", "--no-cache")
    expected = json_lines(call("--metrics=prdc10k5,fid10k", "--no-cache").stdout)
    assert [line["results"] for line in lines] == [line["results"] for line in expected]
    assert any(0 < value < 1 for value in lines[0]["results"].values())
    assert lines[0]["snapshot_pkl"] == str(network)


def test_features_are_saved_once_and_compared_later(call, folder, pictures, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in ("real", "fake")]
    for role, images, file in zip(("real", "fake"), pictures, files):
        result = call(f"--{role}={images}", f"--save-features={file}", network=None)
        assert f"{file}: 20 features of 18 dimensions by pool" in result.stdout
    again = call(f"--real={pictures[0]}", f"--save-features={files[0]}", "--verbose=1", network=None)
    assert "using cached features" in again.output and f"{files[0]}: 20 features of 18 dimensions by pool" in again.stdout
    (expected,) = two_sides(call, *pictures, "--metrics=prdc10k5")
    for sides in (files, (files[0], pictures[1])):
        (line,) = two_sides(call, *sides, "--metrics=prdc10k5")
        assert line["results"] == expected["results"]
    (line,) = two_sides(call, *files, "--metrics=prdc10k5", detector=None)  # the files say which detector it was
    assert line["results"] == expected["results"]
    with pytest.raises(UserError, match="made by a detector pool of its owner's; name it by --detector=PATH"):
        two_sides(call, files[0], pictures[1], "--metrics=prdc10k5", detector=None)


def test_features_of_a_network_are_as_many_as_asked_for(call, folder, tmp_path):
    network, file = folder / "network-snapshot-000004.safetensors", tmp_path / "fake.safetensors"
    call(f"--fake={network}", f"--save-features={file}", "--samples=30", network=None)
    (line,) = two_sides(call, folder / "data.zip", file, "--metrics=coverage")
    assert (line["protocol"]["n_real"], line["protocol"]["n_fake"]) == (COUNT, COUNT)


def test_images_of_different_sizes_are_named(call, tmp_path):
    write_folder(tmp_path / "mixed", {"a.png": png(0, size=(12, 10)), "b.png": png(1, size=(12, 10)), "c.png": png(2, size=(9, 10))})
    with pytest.raises(UserError, match=r"c\.png is 9x10 with 3 channel\(s\), the first image 12x10"):
        two_sides(call, tmp_path / "mixed", tmp_path / "mixed", "--metrics=fid50k_full")


# Sub-commands.


def test_plot_draws_what_was_measured(call, runs):
    call("--metrics=prdc10k5", network=runs / "00000-a")
    result = CliRunner().invoke(calc_metrics.main, ["plot", str(runs / "00000-a"), f"--out={runs / 'drawn'}"], catch_exceptions=False)
    files, table = result.stdout.split("\n\n", 1)
    written = [pathlib.Path(line) for line in files.splitlines()]
    assert {path.suffix for path in written} == {".png", ".svg", ".json"} and all(path.is_file() for path in written)
    assert "| kimg | prdc10k5" in table


def test_plot_draws_statistics_of_the_training_beside_it(call, runs):
    call("--metrics=prdc10k5", network=runs / "00000-a")
    line = {"Loss/G/loss": {"num": 1, "mean": 0.5, "std": 0}, "Progress/kimg": {"num": 1, "mean": 1.0, "std": 0}}
    (runs / "00000-a" / "stats.jsonl").write_text(json.dumps(line) + "\n")
    plot = ["plot", str(runs / "00000-a"), f"--out={runs / 'drawn'}"]
    result = CliRunner().invoke(calc_metrics.main, [*plot, "--signals=Loss/G/loss"], catch_exceptions=False)
    assert "Loss/G/loss" not in result.stdout
    (group,) = json.loads((runs / "drawn.json").read_text())["groups"]
    assert group["figures"]["Loss/G/loss"]["mean"] == [0.5] and "prdc10k5_pool_coverage" in group["figures"]
    with pytest.raises(UserError, match=r"no run has the statistic 'Loss/H'; in stats\.jsonl are Loss/G/loss, Progress/kimg"):
        CliRunner().invoke(calc_metrics.main, [*plot, "--signals=Loss/H"], catch_exceptions=False, standalone_mode=False)


def test_plot_draws_the_figures_that_are_asked_for(call, runs):
    call("--metrics=prdc10k5", network=runs / "00000-a")
    plot = ["plot", str(runs / "00000-a"), f"--out={runs / 'drawn'}"]
    CliRunner().invoke(calc_metrics.main, [*plot, "--figures=recall,prdc10k5_pool_coverage"], catch_exceptions=False)
    drawn = json.loads((runs / "drawn.json").read_text())
    assert drawn["groups"][0]["figures"].keys() == {"prdc10k5_pool_recall", "prdc10k5_pool_coverage"} and drawn["planes"] == []
    with pytest.raises(UserError, match=r"--figures names 'call', which no run has; measured are prdc10k5_pool_coverage, "):
        CliRunner().invoke(calc_metrics.main, [*plot, "--figures=call"], catch_exceptions=False, standalone_mode=False)


def test_show_writes_sheets_of_images(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    sides = [f"--real={folder / 'data.zip'}", f"--fake={folder / 'network-snapshot-000004.safetensors'}", f"--detector={folder / 'pool.pt'}"]
    options = [f"--out={tmp_path / 'sheets'}", "--samples=6", "--count=6", "--device=cpu"]
    result = CliRunner().invoke(calc_metrics.main, ["show", *sides, *options], catch_exceptions=False)
    written = [pathlib.Path(line) for line in result.stdout.splitlines()]
    assert written and all(path.is_file() and path.name.startswith("sheets") for path in written)
    named = {pair["real"] for pairs in ("uncovered", "copies") for pair in json.loads((tmp_path / "sheets.json").read_text())[pairs]}
    assert named <= set(selection(6, COUNT).tolist()) and max(named) >= 6  # numbers of the data set, not of the choice from it


def test_tasks_of_a_slurm_step_measure_together(call, folder, tmp_path):
    """With the variables that Slurm sets: on a machine without Slurm, too."""
    (alone,) = json_lines(call("--metrics=coverage", "--no-cache").stdout)
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    command = [sys.executable, calc_metrics.__file__, f"--network={folder / 'network-snapshot-000004.safetensors'}", "--metrics=coverage"]
    command += [f"--detector={folder / 'pool.pt'}", "--trust-detector", "--device=cpu", "--no-cache"]
    environment = os.environ | step | {"OMP_NUM_THREADS": "1", "DNNLIB_CACHE_DIR": str(tmp_path / "cache")}
    tasks = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment | {"SLURM_PROCID": number, "SLURM_LOCALID": number})
        for number in "01"
    ]
    outputs = [task.communicate(timeout=600)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0] and outputs[1] == ""
    (line,) = json_lines(outputs[0])
    assert (line["num_gpus"], line["results"]) == (2, alone["results"])


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "network", "message"),
    [
        (["--metrics=fid"], None, "'fid' is no known metric; known are"),
        (["--detector=nonsense"], None, "detector nonsense is neither"),
        (["--gpus=2"], None, "--gpus=2 needs that many processes, found 1; start it by `torchrun --nproc-per-node=2"),
        (["--metrics=coverage"], "no-data.safetensors", "--data is missing"),
        (["--metrics=coverage", "--data=absent.zip"], None, "absent.zip"),
        (["--metrics=coverage"], "absent.safetensors", "absent.safetensors"),
        (["--metrics=coverage"], "data.zip", "data.zip"),
        ([], "", "nothing to measure: give --network, or --real and --fake"),
        (["--real=a.zip"], "", "nothing to measure"),
        (["--real=a.zip", "--fake=b.zip", "--mirror=1"], "", "--mirror=1 changes the data set of --network; the images of --real are taken"),
        (["--real=a.zip", "--fake=b.zip"], None, "--network measures a network by its data set and --real names the sides"),
        (["--save-features=x.safetensors"], "", "--save-features writes the features of one side; give either --real or --fake"),
        (["--save-features=x.npz", "--fake=absent.zip"], "", "--save-features=x.npz must end in .safetensors"),  # told before anything is read
        (["--save-features=no/x.safetensors", "--fake=absent.zip"], "", "--save-features=no/x.safetensors cannot be written: no is no folder that"),
        (["--fake=absent.txt"], "", "--fake=absent.txt is no folder or .zip of images, no network .* and no feature file"),
        (["--fake=absent.zip"], "", "absent.zip does not exist"),
    ],
)
def test_mistakes_are_told(call, arguments, network, message):
    with pytest.raises(UserError, match=message):
        call(*arguments, **({} if network is None else {"network": network}))


def test_gpus_are_as_many_as_were_started(call, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--gpus=3 needs that many processes, found 2"):
        call("--gpus=3")


def test_one_image_and_none_are_too_few(call, tmp_path):
    write_folder(tmp_path / "one", {"a.png": png(0)})
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"needs at least 2 images on either side, but --fake=.*one holds 1"):
        two_sides(call, tmp_path / "one", tmp_path / "one", "--metrics=fid50k_full")
    with pytest.raises(UserError, match="none holds no images"):
        two_sides(call, tmp_path / "none", tmp_path / "one", "--metrics=fid50k_full")


def test_options_of_measuring_belong_before_no_sub_command(call, runs):
    with pytest.raises(UserError, match="--network is no option of `plot`"):
        call("plot", str(runs), network=runs)


@pytest.mark.parametrize(("out", "better"), [(".", "./look"), ("..", "../look"), ("pictures/", "pictures/look")])
def test_a_folder_is_no_beginning_of_names(out, better):
    for command in (["plot", "absent"], ["show", "--real=absent.zip", "--fake=absent.zip"]):
        with pytest.raises(UserError, match=f"--out={re.escape(out)} names no file; .*, such as {re.escape(better)}$"):
            calc_metrics.main([*command, f"--out={out}"], standalone_mode=False)


def test_a_mistake_ends_the_command_with_code_2():
    command = [sys.executable, calc_metrics.__file__, "--network=absent.safetensors", "--metrics=nonsense"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: --metrics: 'nonsense' is no known metric") and result.stderr.count("\n") == 1
