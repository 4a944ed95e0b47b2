"""From metric names to result lines: protocols, shared passes, caching, determinism, and what is refused."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from metric_parts import Data, TinyGenerator, results, write_detectors

from dnnlib import UserError, download
from metrics import compute_prdc, feature_cache, frechet_distance, nearest_distances, protocols, registry, report, sides
from metrics.detectors import embedded, get_detector
from metrics.features import GeneratorSource


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return write_detectors(tmp_path_factory.mktemp("detectors"))


@pytest.fixture
def measure(scripts, tmp_path, monkeypatch):
    """compute_metrics on the tiny set, with 200 images instead of 50,000."""
    for name, entry in protocols.METRICS.items():
        monkeypatch.setitem(protocols.METRICS, name, dataclasses.replace(entry, num_fake=entry.num_fake // 250))

    def run(*names, detector="detector", G=None, dataset=None, **options):
        options = {"device": "cpu", "cache_dir": tmp_path / "cache", **options}
        path = str(scripts / f"{detector}.pt") if (scripts / f"{detector}.pt").is_file() else detector
        return registry.compute_metrics(names, G=G or TinyGenerator(), dataset=dataset or Data(), detector=path, **options)

    return run


# Names and protocols.


@pytest.mark.parametrize(
    ("name", "detector", "available", "counts", "k", "closed", "flips"),
    [
        ("fid50k_full", "inception", 70_000, (70_000, 50_000), None, False, False),
        ("fid50k", "inception", 70_000, (50_000, 50_000), None, False, True),
        ("fid10k", "inception", 70_000, (10_000, 10_000), None, False, False),
        ("kid50k_full", "inception", 2_000_000, (1_000_000, 50_000), None, False, False),
        ("kid50k", "inception", 70_000, (50_000, 50_000), None, False, True),
        ("is50k", "inception", 70_000, (0, 50_000), None, False, False),
        ("pr50k3_full", "vgg16", 300_000, (200_000, 50_000), 3, True, False),
        ("pr50k3", "vgg16", 70_000, (50_000, 50_000), 3, True, True),
        ("pr50k3", "vgg16", 1_000, (1_000, 50_000), 3, True, True),
        ("coverage", "vgg16", 70_000, (50_000, 50_000), 3, False, False),
        ("coverage", "vgg16", 1_797, (1_797, 1_797), 3, False, False),
        ("density50k3", "vgg16", 1_797, (1_797, 1_797), 3, False, False),
        ("prdc50k3", "vgg16", 70_000, (50_000, 50_000), 3, False, False),
        ("prdc10k5", "vgg16", 70_000, (10_000, 10_000), 5, False, False),
        ("fid10k_classwise", "inception", 70_000, (10_000, 10_000), None, False, False),
        ("coverage_classwise", "vgg16", 70_000, (50_000, 50_000), 3, False, False),
        ("collision", "vgg16", 70_000, (10_000, 10_000), 3, False, False),
        ("nearest10k", "vgg16", 70_000, (10_000, 10_000), None, False, False),
        ("pairing_acc", None, 70_000, (0, 138_240), None, False, False),
        ("ppl2_wend", "vgg16", 70_000, (0, 50_000), None, False, False),
        ("ppl_zfull", "vgg16", 70_000, (0, 50_000), None, False, False),
    ],
)
def test_names_pin_their_protocols(name, detector, available, counts, k, closed, flips):
    (spec,) = registry.parse_metrics([name])
    entry = spec.protocol
    assert (spec.name, spec.detector, entry.counts(available), entry.k, entry.closed, entry.keep_flips) == (name, detector, counts, k, closed, flips)


def test_every_name_of_stylegan2_ada_is_there():
    named = "fid50k_full kid50k_full pr50k3_full ppl2_wend is50k fid50k kid50k pr50k3 ppl_zfull ppl_wfull ppl_zend ppl_wend"
    assert set(named.split()) <= set(registry.list_metrics())


@pytest.mark.parametrize(
    ("name", "available", "counts"),
    [
        ("fid50k_full", (None, None), (50_000, 50_000)),  # generators on both sides
        ("fid10k", (None, 300), (10_000, 300)),
        ("pr50k3_full", (300_000, 70_000), (200_000, 50_000)),
        ("coverage", (70_000, 8_000), (8_000, 8_000)),
        ("is50k", (None, 300), (0, 300)),
    ],
)
def test_a_side_with_fewer_images_gives_all_it_has(name, available, counts):
    assert protocols.METRICS[name].counts(*available) == counts


def test_unknown_metrics_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'fid51k' is no known metric; known are: fid50k_full, .*coverage.*prdc10k5"):
        registry.parse_metrics(["fid50k_full", "fid51k"])


def test_aliases_and_repetitions_give_one_metric():
    assert [spec.name for spec in registry.parse_metrics(["coverage50k3", "coverage", "fid10k"])] == ["coverage", "fid10k"]


def test_another_detector_is_part_of_the_name():
    names = [spec.name for spec in registry.parse_metrics(["fid10k", "coverage", "pr50k3"], "embedded")]
    assert names == ["fid10k_embedded", "coverage_embedded", "pr50k3_embedded"]
    assert [spec.name for spec in registry.parse_metrics(["fid10k", "coverage"], "inception")] == ["fid10k", "coverage_inception"]
    assert [spec.name for spec in registry.parse_metrics(["fid10k", "coverage"], "/data/vgg16.pt")] == ["fid10k_vgg16", "coverage"]


# Figures.


def test_figures_equal_those_of_the_pure_functions(measure, scripts):
    data, G = Data(), TinyGenerator().eval()
    found = results(measure("fid10k", "prdc10k5", "pr50k3_full", G=G, dataset=data))
    detector = get_detector(str(scripts / "detector.pt"), "cpu")
    z, c = GeneratorSource(G, data, torch.device("cpu")).inputs(0, 200)
    fake = detector((G(z, c, noise_mode="const") * 127.5 + 128).clamp(0, 255).to(torch.uint8))
    real = detector(torch.from_numpy(data.images))
    # 10,000 images are 40 here, so the first 40 of both sets.
    prdc = compute_prdc(real, fake[:150], 5)
    assert {key: found[f"prdc10k5_detector_{key}"] for key in prdc} == compute_prdc(real, fake[:150], 5) == prdc
    closed = compute_prdc(real, fake, 3, closed=True)
    assert (found["pr50k3_full_detector_precision"], found["pr50k3_full_detector_recall"]) == (closed["precision"], closed["recall"])
    found_nearest = results(measure("nearest10k", G=G, dataset=data))
    assert found_nearest == {f"nearest10k_detector_{key}": value for key, value in nearest_distances(real, fake[:150]).items()}
    moments = [(rows.double().numpy().mean(0), np.cov(rows.double().numpy(), rowvar=False, bias=True)) for rows in (real, fake[:40])]
    assert found["fid10k_detector"] == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-9)


@pytest.mark.parametrize("name", ["fid50k", "fid10k"])
def test_a_cap_takes_the_first_real_images_or_a_fixed_random_choice(measure, monkeypatch, name):
    """StyleGAN2-ADA's own metrics take the first; the others must not, since a data set may be sorted by class."""
    monkeypatch.setitem(protocols.METRICS, name, dataclasses.replace(protocols.METRICS[name], max_real=30))
    data, part = Data(), Data()
    chosen = sides.selection(30, len(data) if name == "fid10k" else None)
    assert len(set(chosen.tolist())) == 30 and (chosen.max() == 29) == (name == "fid50k")
    part.images = part.images[chosen]
    whole = measure(name, dataset=data, G=TinyGenerator(c_dim=0))[0]
    assert whole["results"] == measure(name, dataset=part, G=TinyGenerator(c_dim=0))[0]["results"]
    assert whole["protocol"]["n_real"] == 30
    assert whole["protocol"]["real_choice"] == ("random" if name == "fid10k" else "first")
    assert data.read == 30


def test_capped_and_whole_metrics_share_one_pass(measure, monkeypatch):
    for name in ("fid10k", "prdc10k5"):
        monkeypatch.setitem(protocols.METRICS, name, dataclasses.replace(protocols.METRICS[name], max_real=30))
    data = Data()
    names = ["fid50k_full", "fid10k", "prdc10k5"]
    together = results(measure(*names, dataset=data, cache=False))
    assert data.read == len(data)
    assert together == {key: value for name in names for key, value in results(measure(name, cache=False)).items()}


def test_together_as_alone(measure):
    names = ["fid50k_full", "kid50k", "pr50k3", "coverage", "density50k3", "prdc50k3"]
    together = results(measure(*names, cache=False))
    assert together == {key: value for name in names for key, value in results(measure(name, cache=False)).items()}
    assert together["coverage_detector"] == together["prdc50k3_detector_coverage"]
    assert together["density50k3_detector"] == together["prdc50k3_detector_density"]


def test_one_pass_over_data_and_one_over_the_generator(measure):
    G, data = TinyGenerator(), Data()
    measure("fid50k_full", "kid50k_full", "pr50k3_full", "coverage", "prdc10k5", G=G, dataset=data)
    assert (data.read, G.made) == (150, 200)


def test_inception_score_needs_no_real_images(measure):
    data = Data()
    (line,) = measure("is50k", detector="classifier", dataset=data)
    assert data.read == 0
    assert set(line["results"]) == {"is50k_classifier_mean", "is50k_classifier_std"}
    assert 1 <= line["results"]["is50k_classifier_mean"] <= 12


@pytest.mark.parametrize("batches", [{"batch_gen": 3, "batch_detector": 7}, {"batch_gen": 100, "batch_detector": 100}, {"batch_detector": 1}])
def test_batch_sizes_do_not_matter(measure, batches):
    names = ["fid50k_full", "prdc50k3"]
    assert results(measure(*names, cache=False, **batches)) == pytest.approx(results(measure(*names, cache=False)), rel=1e-6)


def test_the_seed_decides(measure):
    first = results(measure("fid50k_full", metric_seed=1))
    assert results(measure("fid50k_full", metric_seed=1)) == first
    assert results(measure("fid50k_full", metric_seed=2)) != first


def test_truncation_is_applied_and_recorded(measure):
    (plain,), (truncated,) = measure("fid50k_full"), measure("fid50k_full", truncation_psi=0.5)
    assert plain["results"] != truncated["results"]
    assert (plain["protocol"]["truncation_psi"], truncated["protocol"]["truncation_psi"]) == (1.0, 0.5)


def test_labels_are_those_of_the_items(measure):
    G, data = TinyGenerator(), Data()
    data.classes[:] = np.random.default_rng(0).choice(3, size=150, p=[0.8, 0.2, 0])
    source = GeneratorSource(G, data, torch.device("cpu"))
    _, labels = source.inputs(0, 4000)
    assert labels.mean(dim=0).tolist() == pytest.approx(np.bincount(data.classes, minlength=3) / 150, abs=0.03)
    measure("fid50k_full", G=G, dataset=data)
    assert torch.equal(torch.cat(G.labels), labels[:200])


def test_inputs_depend_on_the_number_of_the_image_only():
    source = GeneratorSource(TinyGenerator(), Data(), torch.device("cpu"), seed=3)
    whole = source.inputs(0, 300)
    parts = [source.inputs(first, min(first + 37, 300)) for first in range(0, 300, 37)]
    for side in (0, 1):
        assert torch.equal(torch.cat([part[side] for part in parts]), whole[side])


def test_training_is_left_alone(measure):
    G = TinyGenerator().train()
    G.drop.eval()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    tf32 = torch.backends.cudnn.allow_tf32
    measure("fid50k_full", "kid50k_full", "prdc50k3", G=G)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (G.training, G.drop.training, torch.backends.cudnn.allow_tf32) == (True, False, tf32)
    assert G.weight.requires_grad and G.weight.grad is None


# Data-set variants and the record.


def test_variants_of_the_data_set(measure):
    asked = []

    def make_dataset(**overrides):
        asked.append(overrides)
        return Data(xflip=overrides.get("xflip", True))

    full, legacy = measure("fid50k_full", "fid50k", make_dataset=make_dataset)
    assert asked == [{"max_size": None, "xflip": False}, {"max_size": None}]
    assert (full["protocol"]["n_real"], full["protocol"]["xflip"]) == (150, False)
    assert (legacy["protocol"]["n_real"], legacy["protocol"]["xflip"]) == (300, True)
    assert full["results"]["fid50k_full_detector"] != legacy["results"]["fid50k_detector"]


def test_every_line_tells_its_protocol(measure, scripts):
    data = Data()
    (line,) = measure("coverage", dataset=data, metric_seed=5)
    assert list(line) == ["results", "metric", "total_time", "total_time_str", "num_gpus", "protocol"]
    assert line["metric"] == "coverage_detector"
    assert line["protocol"] == {
        "detector": "detector",
        "detector_digest": download.file_digest(scripts / "detector.pt"),
        "n_real": 150,
        "real_choice": "first",
        "n_fake": 150,
        "k": 3,
        "seed": 5,
        "xflip": False,
        "resize": "inside the detector",
        "truncation_psi": 1.0,
        "dataset": data.fingerprint(),
        "code_version": report.CODE_VERSION,
        "inside": "distance < radius",
        "coverage_ceiling": pytest.approx(1 - 149 * 148 * 147 / (299 * 298 * 297)),
    }


def test_lines_on_disk(measure, tmp_path):
    lines = measure("fid50k_full", "coverage")
    for line in lines:
        report.write_line(report.stamp_line(line, tmp_path / "network-snapshot-000001.safetensors", tmp_path), tmp_path)
    written = json.loads((tmp_path / "metric-coverage_detector.jsonl").read_text())
    assert list(written) == ["results", "metric", "total_time", "total_time_str", "num_gpus", "snapshot_pkl", "timestamp", "protocol"]
    assert (written["snapshot_pkl"], written["results"]) == ("network-snapshot-000001.safetensors", lines[1]["results"])
    assert "coverage_detector" in report.format_table(lines)
    with pytest.raises(UserError, match=r"cannot write .*metric-coverage_detector\.jsonl"):
        report.write_line(lines[1], tmp_path / "absent")


# The cache.


def test_real_features_come_from_the_cache(measure):
    first, again = Data(), Data()
    lines = measure("fid50k_full", "prdc50k3", dataset=first)
    assert results(measure("fid50k_full", "prdc50k3", dataset=again)) == results(lines)
    assert (first.read, again.read) == (150, 0)


def test_other_content_or_flips_or_detector_miss_the_cache(measure):
    measure("fid50k_full")
    for dataset, detector in ((Data(seed=1), "detector"), (Data(xflip=True), "detector"), (Data(), "classifier")):
        measure("fid50k_full", dataset=dataset, detector=detector)
        assert dataset.read == len(dataset)


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"junk", lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""])
def test_damaged_entries_are_rebuilt(measure, tmp_path, damage):
    expected = results(measure("fid50k_full"))
    (entry,) = (tmp_path / "cache").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    said, data = [], Data()
    assert results(measure("fid50k_full", dataset=data, log=said.append)) == expected
    assert data.read == 150
    assert "computed again" in said[0] and str(entry) in said[0]
    assert entry.read_bytes() == good


def test_entries_of_another_version_are_rebuilt(measure, tmp_path, monkeypatch):
    """Even one that lies where this version would put its own."""
    expected = results(measure("fid50k_full"))
    (entry,) = (tmp_path / "cache").iterdir()
    good = entry.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "FORMAT", feature_cache.FORMAT + 1)
        measure("fid50k_full", cache_dir=tmp_path / "newer")
    (newer,) = (tmp_path / "newer").iterdir()
    assert newer.name != entry.name
    entry.write_bytes(newer.read_bytes())
    said, data = [], Data()
    assert results(measure("fid50k_full", dataset=data, log=said.append)) == expected
    assert data.read == 150 and "another version" in said[0]
    assert entry.read_bytes() == good


def test_a_cache_that_cannot_be_written_loses_no_figure(measure, tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    assert results(measure("fid50k_full", cache_dir=tmp_path / "file", log=said.append)) == results(measure("fid50k_full"))
    assert "not kept" in said[0] and str(tmp_path / "file") in said[0]


def test_no_cache_reads_and_writes_nothing(measure, tmp_path):
    measure("fid50k_full", cache=False)
    assert not (tmp_path / "cache").exists()


# What is refused.


def test_an_error_in_a_metric_loses_no_other_figure(measure, monkeypatch, capsys):
    def broken(inputs, protocol):
        raise MemoryError

    monkeypatch.setitem(protocols.METRICS, "coverage", dataclasses.replace(protocols.METRICS["coverage"], figures=broken))
    failed = []
    lines = measure("coverage", "fid50k_full", on_failure=lambda name, error: failed.append((name, str(error))))
    assert [line["metric"] for line in lines] == ["fid50k_full_detector"]
    assert failed == [("coverage_detector", "coverage_detector cannot be computed: MemoryError")]
    assert "Traceback" in capsys.readouterr().err


def test_a_metric_that_fails_does_not_take_the_others_along(measure):
    failed = []
    data = Data(count=3)
    with pytest.raises(UserError, match="3 real points are too few"):
        measure("coverage", "fid50k_full", dataset=data)
    lines = measure("coverage", "fid50k_full", dataset=data, on_failure=lambda name, error: failed.append((name, str(error))))
    assert [line["metric"] for line in lines] == ["fid50k_full_detector"]
    assert failed == [("coverage_detector", "3 real points are too few for 3 nearest neighbours; at least 4 are needed")]


def test_values_that_are_not_finite_are_refused_and_not_cached(measure, tmp_path):
    with pytest.raises(UserError, match="detector broken returns features with NaN or infinity"):
        measure("fid50k_full", detector="broken")
    assert not (tmp_path / "cache").exists()
    G = TinyGenerator()
    G.weight.data[0, 7] = float("nan")
    with pytest.raises(UserError, match="the generator makes NaN or infinity in 200 of 200 images"):
        measure("fid50k_full", G=G)


def test_generator_and_data_must_fit(measure):
    with pytest.raises(UserError, match="takes labels of length 5, the labels of the data set have length 3"):
        measure("fid50k_full", G=TinyGenerator(c_dim=5))
    G = TinyGenerator()
    G.img_resolution = 16
    with pytest.raises(UserError, match="makes 16x16 images, the data set holds 8x8"):
        measure("fid50k_full", G=G)


def test_the_embedded_detector_measures_features_and_probabilities(measure):
    coverage, score = measure("coverage", "is50k", detector="embedded")
    assert list(coverage["results"]) == ["coverage_embedded"]
    assert list(score["results"]) == ["is50k_embedded_mean", "is50k_embedded_std"]
    assert 0 <= coverage["results"]["coverage_embedded"] <= 1 <= score["results"]["is50k_embedded_mean"] <= 10
    assert coverage["protocol"]["detector_digest"] == download.file_digest(embedded.WEIGHTS_PATH)
