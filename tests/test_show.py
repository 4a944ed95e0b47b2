"""The sheets show who the metrics count: the same shares, the right neighbours, in the right order, and pictures that can be told apart."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib import UserError
from metrics import show
from metrics.image_sheet import EDGE, draw_sheet, thumbnail
from metrics.prdc import prdc_of_balls


def clouds(num_real=60, num_fake=45, dims=6, seed=0):
    random = np.random.RandomState(seed)
    return random.randn(num_real, dims).astype(np.float32), (0.8 * random.randn(num_fake, dims) + 0.5).astype(np.float32)


def distances(a, b):
    return np.sqrt(np.square(a[:, None].astype(np.float64) - b[None]).sum(axis=2))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("dims", [6, 30])
def test_shares_are_those_of_coverage_and_precision(k, block, dims):
    real, fake = clouds(dims=dims)
    found = show.find_neighbourhoods(real, fake, k, block=block)
    (expected,) = prdc_of_balls(real, fake, [(k, False)])
    assert (found.covered.mean(), found.inside.mean()) == (expected["coverage"], expected["precision"])


@pytest.mark.parametrize("block", [None, 7])
def test_neighbours_and_radii_are_those_of_the_definition(block):
    real, fake = clouds()
    found = show.find_neighbourhoods(torch.from_numpy(real), torch.from_numpy(fake), 3, block=block)
    between, among = distances(real, fake), np.sort(distances(real, real) + np.diag(np.full(len(real), np.inf)), axis=1)
    assert (found.nearest_fake == between.argmin(axis=1)).all() and (found.nearest_real == between.argmin(axis=0)).all()
    for values, expected in [(found.to_fake, between.min(1)), (found.to_real, between.min(0)), (found.radius, among[:, 2]), (found.own, among[:, 0])]:
        np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("block", [None, 3])
def test_of_neighbours_at_one_distance_the_first_is_named(block):
    real = np.array([[0.0], [10], [20], [30]])
    fake = np.array([[5.0], [-1], [1], [1], [-1], [15], [15]])
    found = show.find_neighbourhoods(real, fake, 1, block=block)
    assert found.nearest_fake.tolist() == [1, 0, 5, 5]
    assert found.nearest_real.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_the_least_covered_come_first_and_are_uncovered():
    real, fake = clouds()
    found = show.find_neighbourhoods(real, fake, 3)
    pairs = found.uncovered(1000)
    assert {pair.real for pair in pairs} == set(np.flatnonzero(~found.covered))
    ratios = [pair.ratio for pair in pairs]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] >= 1
    assert found.uncovered(2) == pairs[:2]
    off = found.outside(1000)
    assert {pair.fake for pair in off} == set(np.flatnonzero(~found.inside))
    assert all(pair.real == found.nearest_real[pair.fake] and pair.ratio >= 1 for pair in off)


def test_a_missing_mode_is_what_is_shown_as_uncovered():
    random = np.random.RandomState(0)
    real = np.concatenate([random.randn(40, 4), random.randn(10, 4) + 50]).astype(np.float32)
    found = show.find_neighbourhoods(real, random.randn(200, 4).astype(np.float32), 3)
    assert {pair.real for pair in found.uncovered(10)} == set(range(40, 50))


def test_one_image_of_a_kind_is_shown_and_tells_how_many_it_stands_for(tmp_path):
    random = np.random.RandomState(0)
    modes = [random.randn(40, 4), random.randn(10, 4) + 50, random.randn(5, 4) - 70]
    real, fake = np.concatenate(modes).astype(np.float32), random.randn(200, 4).astype(np.float32)
    written = show.make_sheets(Pictures(55), Pictures(200), real, fake, k=3, out=tmp_path / "x", count=24)
    record = json.loads(written[-1].read_text())
    missed = [pair for pair in record["uncovered"] if pair["real"] >= 40]
    assert sorted(pair["stands_for"] for pair in missed) == [5, 10]
    assert sum(pair["stands_for"] for pair in record["uncovered"]) == record["num_uncovered"]


def test_copies_come_first_and_stand_out_by_their_ratio():
    real, fake = clouds()
    fake[[7, 20]] = real[[3, 50]]
    pairs = show.find_neighbourhoods(real, fake, 3).copies(5)
    assert [(pair.real, pair.fake, pair.distance, pair.ratio) for pair in pairs[:2]] == [(3, 7, 0, 0), (50, 20, 0, 0)]
    assert pairs[2].ratio > 0.2
    assert [pair.distance for pair in pairs] == sorted(pair.distance for pair in pairs)


def test_real_points_with_copies_of_themselves_come_last_and_have_no_ratio():
    real, fake = clouds(num_fake=5)
    real[:4] = real[0] = 9.0
    found = show.find_neighbourhoods(real, fake, 3)
    assert [(pair.real, pair.ratio) for pair in found.uncovered(1000)[-4:]] == [(index, None) for index in range(4)]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_order_does_not_depend_on_the_unit_of_features(scale):
    real, fake = (part.astype(np.float64) for part in clouds())
    plain, scaled = show.find_neighbourhoods(real, fake), show.find_neighbourhoods(real * scale, fake * scale)
    for name in ("uncovered", "outside", "copies"):
        assert [(p.real, p.fake) for p in getattr(plain, name)(30)] == [(p.real, p.fake) for p in getattr(scaled, name)(30)]


class Pictures:
    """Images of one colour each that remember who asked for them."""

    def __init__(self, count, channels=3, edge=8):
        self.count, self.shape, self.asked = count, (channels, edge, edge), set()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked.add(index)
        return np.full(self.shape, index, dtype=np.uint8)


def test_sheets_show_the_pairs_of_the_json_and_load_no_other_image(tmp_path):
    real, fake = clouds()
    reals, fakes = Pictures(60), Pictures(45, channels=1)
    written = show.make_sheets(reals, fakes, real, fake, k=3, out=tmp_path / "new" / "a.b", count=5)
    assert [path.name for path in written] == ["a.b-uncovered.png", "a.b-outside.png", "a.b-copies.png", "a.b.json"]
    record = json.loads(written[-1].read_text())
    found = show.find_neighbourhoods(real, fake, 3)
    counts = {"num_real": 60, "num_fake": 45, "num_uncovered": int((~found.covered).sum()), "num_outside": int((~found.inside).sum())}
    assert {key: record[key] for key in counts} == counts and record["k"] == 3
    pairs = [pair for name in ("uncovered", "outside", "copies") for pair in record[name]]
    assert len(record["copies"]) == 5 and 0 < len(record["uncovered"]) <= 5
    assert reals.asked == {pair["real"] for pair in pairs} and fakes.asked == {pair["fake"] for pair in pairs}
    with Image.open(written[0]) as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 24)}
    for pair in record["uncovered"]:
        assert {(pair["real"],) * 3, (pair["fake"],) * 3} <= colours
    again = show.make_sheets(reals, fakes, real, fake, k=3, out=tmp_path / "again.png", count=5)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_a_sheet_without_pairs_says_so_and_is_written(tmp_path):
    real, _ = clouds()
    written = show.make_sheets(Pictures(60), Pictures(60), real, real.copy(), out=tmp_path / "x", fake_name="net.safetensors")
    record = json.loads(written[-1].read_text())
    assert record["uncovered"] == record["outside"] == [] and record["num_uncovered"] == 0 and record["fake"] == "net.safetensors"
    assert all(path.is_file() for path in written)


def test_mistakes_are_named(tmp_path):
    real, fake = clouds()
    with pytest.raises(UserError, match="59 real images and 60 rows of real features"):
        show.make_sheets(Pictures(59), Pictures(45), real, fake, out=tmp_path / "x")
    with pytest.raises(UserError, match="at least 4"):
        show.find_neighbourhoods(real[:3], fake, 3)
    with pytest.raises(UserError, match="one detector"):
        show.find_neighbourhoods(real[:, :5], fake, 3)
    for bad in (np.zeros([3, 8, 8], np.float32), np.zeros([8, 8], np.uint8), np.zeros([5, 8, 8], np.uint8)):
        with pytest.raises(UserError, match=r"shape|channels"):
            thumbnail(bad)
    with pytest.raises(UserError, match="cannot write"):
        draw_sheet([], ["nothing"], tmp_path / "missing" / "x.png")


def test_thumbnails_keep_pixels_of_small_images_and_the_shape_of_large_ones():
    small = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2)
    enlarged = np.asarray(thumbnail(small))
    assert enlarged.shape == (EDGE, EDGE, 3)
    assert (enlarged[:: EDGE // 2, :: EDGE // 2] == small.transpose(1, 2, 0)).all() and len(np.unique(enlarged.reshape(-1, 3), axis=0)) == 4
    wide = np.asarray(thumbnail(np.zeros([1, 200, 400], np.uint8)))
    assert ((wide == 0).all(axis=2).any(axis=1).sum(), (wide == 0).all(axis=2).any(axis=0).sum()) == (EDGE // 2, EDGE)
    see_through = np.full([4, 4, 4], 255, np.uint8)
    see_through[3] = 0
    assert (np.asarray(thumbnail(see_through)) == 0).all()
