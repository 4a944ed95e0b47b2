"""What can be compared with what: data sets, generators and feature files on either side, and metrics that need the generator itself."""

import copy
import dataclasses
import os
import pathlib

import numpy as np
import pytest
import safetensors.torch
import torch
from metric_parts import Data, TinyGenerator, results, write_detectors

from dnnlib import UserError
from metrics import compute_prdc, frechet_distance, protocols, registry, report, sides
from metrics.classwise import classwise_coverage
from metrics.collectors import Rows
from metrics.collision import collision, near_share, typical_radius
from metrics.detectors import get_detector
from metrics.feature_cache import FeatureCache
from metrics.feature_files import FeatureFile, is_feature_file, load_features, save_features
from metrics.latent_identification import latent_identification
from metrics.perceptual_path_length import perceptual_path_length
from metrics.sides import DataSide, FileSide, GeneratorSide, PassOptions
from training.networks import Generator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return write_detectors(tmp_path_factory.mktemp("detectors"))


@pytest.fixture
def compare(scripts, monkeypatch):
    """registry.compare with 200 images instead of 50,000 and a probe of five steps."""
    for name, entry in protocols.METRICS.items():
        changes = {"parameters": {"steps": 5, "batch": 4, "held_out": 2}} if name == "pairing_acc" else {}
        changes |= {"num_fake": 12} if entry.collect is None else {"num_fake": entry.num_fake // 250}
        monkeypatch.setitem(protocols.METRICS, name, dataclasses.replace(entry, **changes))

    def run(*names, real=None, fake, detector="detector", **options):
        return registry.compare(names, real=real, fake=fake, device="cpu", detector=str(scripts / f"{detector}.pt"), **options)

    return run


@pytest.fixture
def features(scripts):
    """Rows of a data set by the detector."""
    network = get_detector(str(scripts / "detector.pt"), CPU)
    return lambda data: network(torch.from_numpy(data.images))


@pytest.fixture
def saved(scripts, tmp_path):
    """Saves the features of a data set and reads them as a side."""

    def run(data, name="saved", labels=True, **changes):
        network = get_detector(str(scripts / "detector.pt"), CPU)
        side = data_side(data)
        request = side.request(network, Rows, len(data), sampled=False)
        rows = side.collect({request: network}, PassOptions(64, CPU))[request]["rows"]
        facts = {"detector": network.name, "digest": network.digest, "resize": network.resize, "source": request.source} | changes
        path = tmp_path / f"{name}.safetensors"
        save_features(FeatureFile(path, rows, side.labels(request) if labels else None, **facts, image_size=side.image_size()))
        return FileSide(load_features(path))

    return run


def data_side(data, name="the data set"):
    return DataSide(lambda **overrides: data, name)


def generator_side(G=None, labels=None, **options):
    return GeneratorSide(G or TinyGenerator(), labels or Data(), CPU, **options)


def flat(lines):
    return {name.replace("_detector", ""): value for name, value in results(lines).items()}


# Two sets of images.


def test_the_inception_score_of_a_folder_does_not_depend_on_the_order_of_its_files(compare):
    sorted_by_kind = Data(count=200)
    sorted_by_kind.images[:100] //= 8  # dark images first: the ten parts of the score would hold one kind each
    found = [compare("is50k", fake=data_side(data), detector="classifier")[0]["results"] for data in (sorted_by_kind, shuffled(sorted_by_kind))]
    one, other = (line["is50k_classifier_mean"] for line in found)
    assert abs(one - other) < 0.01  # .031 if the parts are taken in the files' order


def shuffled(data):
    order = np.random.default_rng(1).permutation(len(data))
    other = copy.copy(data)
    other.images, other.classes = data.images[order], data.classes[order]
    return other


def test_labels_that_a_metric_draws_are_on_record(compare):
    G = TinyGenerator()
    records = {}
    for name, given in (("all", Data()), ("mirrored", Data(xflip=True)), ("other", Data(seed=1))):
        (line,) = compare("pairing_acc", fake=GeneratorSide(G, Data(), CPU, given=given))
        records[name] = line["protocol"]["dataset"], line["protocol"]["xflip"]
    assert len(set(records.values())) == 3
    (line,) = compare("pairing_acc", fake=generator_side(TinyGenerator(c_dim=0)))
    assert line["protocol"]["dataset"] is None


def test_two_data_sets_are_compared_by_their_features(compare, features):
    real, fake = Data(), Data(count=120, seed=1)
    found = flat(compare("fid50k_full", "prdc50k3", "pr50k3_full", real=data_side(real), fake=data_side(fake)))
    rows = [features(data) for data in (real, fake)]
    moments = [(part.double().mean(0), torch.cov(part.double().t(), correction=0)) for part in rows]
    assert found["fid50k_full"] == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-9)
    closed = compute_prdc(*rows, 3, closed=True)
    assert (found["pr50k3_full_precision"], found["pr50k3_full_recall"]) == (closed["precision"], closed["recall"])
    # As many real images as there are others, so that the ceiling is that of equal numbers.
    chosen = sides.selection(120, 150)
    assert {name: found[f"prdc50k3_{name}"] for name in closed} == compute_prdc(rows[0][torch.from_numpy(chosen)], rows[1], 3)


def test_the_record_says_how_many_images_were_compared_and_which(compare):
    (line,) = compare("prdc10k5", real=data_side(Data()), fake=data_side(Data(count=30, seed=1)))
    protocol = line["protocol"]
    assert (protocol["n_real"], protocol["n_fake"], protocol["real_choice"], protocol["fake_choice"]) == (30, 30, "random", "first")
    assert protocol["truncation_psi"] is None


def test_a_set_compared_with_itself_is_perfect(compare):
    found = flat(compare("fid50k_full", "pr50k3_full", "coverage", real=data_side(Data()), fake=data_side(Data())))
    assert found == {"fid50k_full": pytest.approx(0, abs=1e-6), "pr50k3_full_precision": 1, "pr50k3_full_recall": 1, "coverage": 1}


def test_swapping_the_sides_swaps_precision_and_recall(compare):
    a, b = Data(), Data(count=150, seed=1)
    one, other = (flat(compare("prdc50k3", real=data_side(x), fake=data_side(y))) for x, y in ((a, b), (b, a)))
    assert one["prdc50k3_precision"] == other["prdc50k3_recall"] and one["prdc50k3_recall"] == other["prdc50k3_precision"]


def test_features_of_real_images_are_kept_for_the_next_generator(compare):
    data = Data()
    real = data_side(data)
    first, again = (compare("fid50k_full", real=real, fake=generator_side()) for _ in range(2))
    assert data.read == 150 and flat(first) == flat(again)


def test_metrics_share_the_rows_of_a_pass(compare, monkeypatch):
    made = []
    monkeypatch.setattr(Rows, "__init__", lambda self, limit, start=Rows.__init__: (made.append(limit), start(self, limit))[1])
    compare("kid50k_full", "prdc50k3", "pr50k3_full", "coverage", real=data_side(Data()), fake=generator_side())
    assert made == [150, 200]


def test_metrics_on_the_same_rows_share_the_search_for_neighbours(compare, monkeypatch):
    asked = []
    search = protocols.prdc_of_balls

    def counted(real, fake, balls, **options):
        asked.append(balls)
        return search(real, fake, balls, **options)

    monkeypatch.setattr(protocols, "prdc_of_balls", counted)
    sides = {"real": data_side(Data()), "fake": data_side(Data(seed=1))}
    together = flat(compare("pr50k3_full", "coverage", "density50k3", **sides))
    assert asked == [[(3, True), (3, False)]]
    assert together == {key: value for name in ("pr50k3_full", "coverage", "density50k3") for key, value in flat(compare(name, **sides)).items()}


# Generators on the real side.


def test_a_generator_may_stand_for_real_images(compare):
    names = ["fid50k_full", "prdc50k3"]
    real = generator_side(stream=1, name="--real=a.pkl", fingerprint="abc")
    lines = compare(*names, real=real, fake=generator_side())
    assert [line["protocol"]["n_real"] for line in lines] == [200, 200]
    assert {line["protocol"]["dataset"] for line in lines} == {"abc"}
    # The same network with latents of its own on either side: close, not the same images.
    found = flat(lines)
    assert 0 < found["fid50k_full"] < flat(compare("fid50k_full", real=data_side(Data()), fake=generator_side()))["fid50k_full"]
    assert 0.5 < found["prdc50k3_coverage"] < 1


def test_streams_of_one_seed_share_no_latents():
    streams = [generator_side(seed=3, stream=stream).source.inputs(0, 256)[0] for stream in (0, 1, 2)]
    assert len(torch.unique(torch.cat(streams), dim=0)) == 3 * 256


# Feature files.


def test_saved_features_give_the_figures_of_the_images(compare, saved):
    real, fake = Data(), Data(count=120, seed=1)
    names = ["fid50k_full", "kid50k_full", "prdc50k3", "coverage_classwise"]
    expected = flat(compare(*names, real=data_side(real), fake=data_side(fake)))
    for pair in ((saved(real), data_side(fake)), (data_side(real), saved(fake)), (saved(real), saved(fake, "other"))):
        assert flat(compare(*names, real=pair[0], fake=pair[1])) == pytest.approx(expected, rel=1e-9)


def test_files_alone_need_no_detector(saved, scripts):
    """They say which one made them, so that a comparison is possible where the detector is not at hand."""
    sides = {"real": saved(Data(), detector="vgg16"), "fake": saved(Data(seed=1), "other", detector="vgg16")}
    (line,) = registry.compare(["prdc50k3"], device="cpu", **sides)
    assert (line["metric"], line["protocol"]["detector_digest"]) == ("prdc50k3", sides["real"].file.digest)


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"junk", lambda data: b""])
def test_damaged_files_are_refused(saved, damage):
    path = saved(Data()).file.path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path}.*again"):
        load_features(path)


def test_other_files_are_refused(saved, tmp_path, monkeypatch):
    other = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"rows": torch.zeros(3, 2)}, other)
    assert not is_feature_file(other) and not is_feature_file(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="no feature file of this version"):
        load_features(other)
    path = saved(Data()).file.path
    assert is_feature_file(path)
    monkeypatch.setattr("metrics.feature_files.FORMAT", 2)
    with pytest.raises(UserError, match="no feature file of this version"):
        load_features(path)


def test_a_file_needs_its_suffix_and_a_folder(saved):
    file = saved(Data()).file
    for path, message in (("features.npz", "must end in .safetensors"), ("absent/features.safetensors", "absent is no folder")):
        with pytest.raises(UserError, match=message):
            save_features(dataclasses.replace(file, path=pathlib.Path(path)))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_can_be_read_by_whom_the_system_says(saved, tmp_path, umask):
    before = os.umask(umask)
    try:
        path = saved(Data()).file.path
        FeatureCache(tmp_path / "cache").save({"detector": "x"}, {"rows": torch.zeros(2, 3)})
    finally:
        os.umask(before)
    for written in (path, *(tmp_path / "cache").iterdir()):
        assert written.stat().st_mode & 0o777 == 0o666 & ~umask


# Metrics that need the generator.


def test_collision_is_that_of_the_latents_and_images_of_the_pass(compare, features, scripts):
    data, G = Data(), TinyGenerator().eval()
    found = flat(compare("collision", "fid10k", real=data_side(data), fake=generator_side(G, data)))
    assert G.made == 40
    z, c = generator_side(G, data).source.inputs(0, 40)
    images = (G(z, c, noise_mode="const") * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    fake = get_detector(str(scripts / "detector.pt"), CPU)(images)
    assert found["collision"] == collision(z, fake, features(data), 3)


def test_collision_sees_a_generator_that_ignores_its_latents(compare, features):
    G = TinyGenerator()
    G.weight.data[:4] = 0
    lines = compare("collision", real=data_side(Data()), fake=generator_side(G))
    assert flat(lines)["collision"] > 0.25  # a third of the pairs share their class, and with it their image
    protocol = lines[0]["protocol"]
    real = features(Data())
    assert "chance" not in protocol and protocol["among_real"] == near_share(real, typical_radius(real, 3)) > 0
    assert f"about {protocol['among_real']:.2g} among real images" in report.format_table(lines)


def test_probe_and_path_length_are_those_of_the_functions(compare, scripts):
    G, data = tiny_network(), Data()
    side = GeneratorSide(G, data, CPU, seed=2)
    found = results(compare("pairing_acc", "ppl2_wend", "ppl_zfull", fake=side, detector="perceptual", metric_seed=2))
    distance = get_detector(str(scripts / "perceptual.pt"), CPU, "lpips")
    options = {"num_samples": 12, "epsilon": 1e-4, "batch": 2, "seed": 2, "distance": distance}
    for name, crop, space, sampling in (("ppl2_wend", False, "w", "end"), ("ppl_zfull", True, "z", "full")):
        expected = perceptual_path_length(G, data, CPU, crop=crop, space=space, sampling=sampling, **options)
        assert found[f"{name}_perceptual"] == pytest.approx(expected, rel=1e-6) and expected > 0
    probe = {"steps": 5, "batch": 4, "held_out": 2, "generator_batch": side.batch, "seed": 2}
    assert found["pairing_acc"] == latent_identification(G, data, CPU, **probe)


def test_the_record_tells_what_the_generator_metrics_did(compare):
    lines = compare("ppl_wfull", "pairing_acc", fake=GeneratorSide(tiny_network(), Data(), CPU), detector="perceptual")
    path, probe = (line["protocol"] for line in lines)
    told = {"epsilon": 1e-4, "space": "w", "sampling": "full", "crop": True, "n_real": 0, "n_fake": 12, "detector": "perceptual"}
    assert path == path | told
    assert probe == probe | {"steps": 5, "n_real": 0, "n_fake": 12, "detector": None, "detector_digest": None, "chance": 1 / 64}


def test_every_metric_at_once_leaves_the_generator_as_it_was(compare):
    G, data = tiny_network().train(), Data()
    before, states = copy.deepcopy(G.state_dict()), (torch.get_rng_state(), np.random.get_state()[1].copy())
    names = [name for name, entry in protocols.METRICS.items() if entry.output != "probabilities"]
    wide = Data()
    wide.images, wide.resolution = np.repeat(np.repeat(wide.images, 4, axis=2), 4, axis=3), 32
    lines = compare(*names, real=data_side(wide), fake=GeneratorSide(G, data, CPU), detector="perceptual")
    assert len(lines) == len(names)
    assert all(np.isfinite(value) for value in results(lines).values())
    after = G.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    assert G.training and all(parameter.grad is None and parameter.requires_grad for parameter in G.parameters())


def test_figures_per_class_are_those_of_the_labels(compare, features):
    real, fake = Data(), Data(count=140, seed=1)
    found = flat(compare("coverage_classwise", "fid10k_classwise", real=data_side(real), fake=data_side(fake)))
    rows = [features(data) for data in (real, fake)]
    chosen = sides.selection(140, 150)
    expected = classwise_coverage(rows[0][torch.from_numpy(chosen)], real.classes[chosen], rows[1], fake.classes, 3)
    assert {f"coverage_classwise{suffix}": value for suffix, value in expected.items()}.items() <= found.items()
    assert {f"fid10k_classwise{suffix}" for suffix in ("_class0", "_class1", "_class2", "_mean")} <= set(found)


def tiny_network():
    """A StyleGAN2 generator of 32x32 images for three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(8, 3, 8, 32, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs={"channel_base": 128, "channel_max": 8})


# What is refused.


def resized(data, resolution):
    data.resolution = resolution
    return data


def without_labels(data):
    data.label_dim = 0
    return data


@pytest.mark.parametrize(
    ("names", "real", "fake", "message"),
    [
        (["collision"], Data(), Data(), "collision_detector needs the generator itself, but the data set holds only what one made"),
        (["pairing_acc"], Data(), Data(), "pairing_acc needs the generator itself"),
        (["ppl2_wend"], Data(), Data(), "ppl2_wend_detector needs the generator itself"),
        (["coverage"], None, Data(), "coverage_detector compares with real images; name them by --real"),
        (["coverage"], resized(Data(), 16), Data(), "the data set holds 8x8 images, the data set holds 16x16"),
        (["fid10k"], Data(count=1), Data(), "fid10k_detector needs at least 2 images on either side, but the data set holds 1"),
        (["fid10k"], Data(), Data(count=1), "fid10k_detector needs at least 2 images on either side, but the data set holds 1"),
        (["coverage"], Data(), Data(count=3), "3 real points are too few for 3 nearest neighbours"),
        (["coverage_classwise"], without_labels(Data()), Data(), "the data set has no labels, which a figure per class needs"),
        (["is50k"], Data(), "file", "needs probabilities of the detector, but .*saved.safetensors holds features"),
        (["coverage"], Data(), {"detector": "vgg16"}, "holds features of detector vgg16, but coverage_detector uses detector"),
        (["coverage"], Data(), {"digest": "0" * 64}, "was made by another file of detector detector"),
        (["coverage_classwise"], Data(), {"labels": False}, "holds no labels, which a figure per class needs"),
    ],
)
def test_what_makes_no_sense_is_refused(compare, saved, names, real, fake, message):
    side = data_side(fake) if isinstance(fake, Data) else saved(Data(), **({} if fake == "file" else fake))
    with pytest.raises(UserError, match=message) as caught:
        compare(*names, real=None if real is None else data_side(real), fake=side)
    assert "\n" not in str(caught.value)


def test_a_metric_that_makes_no_sense_does_not_take_the_others_along(compare):
    failed = []
    sides = {"real": data_side(Data()), "fake": generator_side(TinyGenerator(c_dim=0))}
    lines = compare("coverage_classwise", "coverage", **sides, on_failure=lambda name, error: failed.append((name, str(error))))
    assert [line["metric"] for line in lines] == ["coverage_detector"]
    assert failed == [("coverage_classwise_detector", "the generator takes no labels, which a figure per class needs; measure a conditional network")]


def test_a_conditional_generator_needs_a_data_set_for_its_labels():
    with pytest.raises(UserError, match="takes labels of length 3, and there is no data set to take them from"):
        GeneratorSide(TinyGenerator(), None, CPU)
