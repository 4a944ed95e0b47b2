"""FID and coverage by class: equal to the figures of each class alone, whatever the order, and one sentence where a class is too small."""

import warnings

import numpy as np
import pytest
import torch

from dnnlib import UserError
from metrics import compute_prdc, frechet_distance
from metrics.classwise import class_numbers, classwise_coverage, classwise_fid

CLASSES = 3
DIM = 6


def make_side(seed, counts=(40, 25, 60), shift=0.0, dim=DIM):
    """Rows and labels: each class around a centre of its own, mixed."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    spread = rng.uniform(0.5, 2, (dim, dim))
    return (rng.standard_normal((len(labels), dim)) @ spread + labels[:, None] + shift).astype(np.float32), labels


def frechet(a, b):
    """FID of two sets of rows by the means and covariances of the whole sets."""
    moments = [stat for rows in (a, b) for stat in (rows.astype(np.float64).mean(0), np.cov(rows.astype(np.float64).T, bias=True))]
    return frechet_distance(*moments)


# Labels.


def test_one_hot_rows_and_integers_name_the_same_classes():
    numbers = torch.tensor([2, 0, 1, 2])
    for labels in (numbers, numbers.to(torch.uint8), numbers.numpy(), np.eye(3, dtype=np.float32)[numbers], torch.eye(3)[numbers]):
        found = class_numbers(labels)
        assert found.dtype == torch.int64 and torch.equal(found, numbers)


@pytest.mark.parametrize(
    "labels",
    [np.zeros((4, 0)), np.ones((4, 3)), np.zeros((4, 3)), np.full((2, 2), 0.5), np.array([0.0, 1.0]), np.array([0, -1]), np.array([], dtype=int)],
)
def test_labels_that_name_no_class_are_refused(labels):
    with pytest.raises(UserError, match=r"need integers from 0 up \[N\] or one-hot rows"):
        class_numbers(labels)


# FID.


def test_fid_is_that_of_each_class_alone_and_their_mean():
    (real, real_labels), (fake, fake_labels) = make_side(0), make_side(1, counts=(30, 50, 20), shift=0.5)
    figures = classwise_fid(real, real_labels, fake, fake_labels)
    expected = [frechet(real[real_labels == number], fake[fake_labels == number]) for number in range(CLASSES)]
    assert list(figures) == ["_class0", "_class1", "_class2", "_mean", "_worst"]
    assert list(figures.values()) == pytest.approx([*expected, np.mean(expected), max(expected)], rel=1e-9)


@pytest.mark.parametrize("counts", [((2, 4), (3, 5)), ((20, 3), (20, 40)), ((3, 40), (40, 20)), ((12, 13), (13, 11))])
def test_fid_of_few_images_is_that_of_their_covariances(counts):
    (real, real_labels), (fake, fake_labels) = (make_side(seed, counts=count, dim=12, shift=seed) for seed, count in enumerate(counts))
    with pytest.warns(UserWarning, match="biased upwards"):
        figures = classwise_fid(real, real_labels, fake, fake_labels)
    for number in range(2):
        expected = frechet(real[real_labels == number], fake[fake_labels == number])
        assert figures[f"_class{number}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [4, 40])
def test_fid_of_a_set_with_itself_is_zero(count):
    rows, labels = make_side(0, counts=(count, count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(0 <= value < 1e-9 for value in classwise_fid(rows, labels, rows, labels).values())


def test_fid_of_large_classes_comes_without_a_warning_and_of_small_ones_with_numbers():
    real, fake = make_side(0), make_side(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classwise_fid(*real, *fake)
    small = make_side(1, counts=(40, 5, 3))
    found = r"2 of 3 classes have fewer images than the features have dimensions \(6\), class 2 only 3: their FID is biased upwards"
    with pytest.warns(UserWarning, match=found):
        classwise_fid(*real, *small)


# Coverage.


def test_coverage_is_that_of_each_class_alone_cut_to_equal_numbers():
    (real, real_labels), (fake, fake_labels) = make_side(0), make_side(1, counts=(30, 50, 20), shift=1.0)
    figures = classwise_coverage(real, real_labels, fake, fake_labels, nearest_k=2)
    expected = []
    for number, count in enumerate((30, 25, 20)):
        own = real[real_labels == number][:count], fake[fake_labels == number][:count]
        expected.append(compute_prdc(*own, nearest_k=2)["coverage"])
    assert 0 < min(expected) < max(expected) < 1
    assert [figures[f"_class{number}"] for number in range(CLASSES)] == expected
    assert figures["_mean"] == pytest.approx(np.mean(expected)) and figures["_worst"] == min(expected)


def test_a_generator_that_swaps_classes_covers_none():
    real, labels = make_side(0, counts=(50, 50))
    real += 1000 * labels[:, None]
    assert classwise_coverage(real, labels, real, labels)["_mean"] == 1
    swapped = classwise_coverage(real, labels, real, 1 - labels)
    assert swapped == {"_class0": 0, "_class1": 0, "_mean": 0, "_worst": 0}


# Both.


@pytest.mark.parametrize("metric", [classwise_fid, classwise_coverage])
def test_one_lost_class_shows_in_its_own_figure_only(metric):
    (real, real_labels), (fake, fake_labels) = make_side(0), make_side(1)
    before = metric(real, real_labels, fake, fake_labels)
    fake = np.where((fake_labels == 1)[:, None], fake[fake_labels == 1][:1] + 1000, fake)
    after = metric(real, real_labels, fake, fake_labels)
    assert {name for name in before if after[name] != before[name]} == {"_class1", "_mean", "_worst"}
    assert (after["_class1"] > before["_class1"]) == (metric is classwise_fid)


@pytest.mark.parametrize("metric", [classwise_fid, classwise_coverage])
def test_order_across_classes_and_kind_of_input_do_not_matter(metric):
    (real, real_labels), (fake, fake_labels) = make_side(0), make_side(1)
    expected = metric(real, real_labels, fake, fake_labels)
    by_class = np.argsort(real_labels, kind="stable")
    assert metric(real[by_class], real_labels[by_class], fake, fake_labels) == expected
    tensors = torch.from_numpy(real), torch.from_numpy(np.eye(CLASSES)[real_labels]), torch.from_numpy(fake), torch.from_numpy(fake_labels)
    assert metric(*tensors) == expected


@pytest.mark.parametrize(("metric", "at_least"), [(classwise_fid, 2), (classwise_coverage, 4)])
def test_classes_that_are_too_small_are_named(metric, at_least):
    real = make_side(0, counts=(30, 30))
    for counts, found in (((30, at_least - 1), at_least - 1), ((30,), 0)):
        with pytest.raises(UserError, match=rf"class 1 has 30 real and {found} generated images; .* at least {at_least} of each"):
            metric(*real, *make_side(1, counts=counts))
    with pytest.raises(UserError, match="class 2 has 0 real and 30 generated images"):
        metric(*real, *make_side(1, counts=(30, 30, 30)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric(*real, *make_side(1, counts=(30, at_least)))


@pytest.mark.parametrize("metric", [classwise_fid, classwise_coverage])
def test_sides_that_do_not_fit_are_refused(metric):
    rows, labels = make_side(0)
    broken = rows.copy()
    broken[3, 2] = np.nan
    for arguments, message in (
        ((rows, labels[1:], rows, labels), "125 real features and 124 labels"),
        ((rows, labels, rows[1:], labels), "124 fake features and 125 labels"),
        ((rows, labels, rows[:, 1:], labels), "real features have 6 dimensions and fake features 5"),
        ((rows, labels, broken, labels), "fake features hold NaN or infinity in 1 of 125 rows"),
    ):
        with pytest.raises(UserError, match=message):
            metric(*arguments)
