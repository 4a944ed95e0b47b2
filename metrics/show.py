"""What stands behind the numbers: real images that no generated one is near, generated ones outside the real data, and copies of training images.

    make_sheets(real_images, fake_images, real_features, fake_features, out=pathlib.Path("look"))

writes look-uncovered.png, look-outside.png, look-copies.png and look.json. Neighbourhoods are those of `metrics.prdc`: the ball around a real point
reaches to its k-th nearest other real point, and its rim does not belong to it. Pictures are put together in `metrics.image_sheet`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dnnlib import UserError, atomic_write_text, make_folder
from metrics import knn
from metrics.image_sheet import draw_sheet

SUFFIXES = (".png", ".json")
ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Pair:
    """A real and a generated image that are neighbours.

    Attributes:
        real: number of the real image; fake: of the generated one.
        distance: between their features.
        scale: what the distance is set against, in the same unit.
        stands_for: images like the one in question that the sheet leaves out for it, itself counted.
    """

    real: int
    fake: int
    distance: float
    scale: float
    stands_for: int = 1

    @property
    def ratio(self) -> float | None:
        """distance / scale; None where the real image has copies of itself, so that the scale is 0."""
        return self.distance / self.scale if self.scale > 0 else None


@dataclasses.dataclass(frozen=True)
class Neighbourhoods:
    """Who is near whom; everything is on the CPU.

    Attributes:
        radius: of the real balls [N]; own: distance of each real point to the nearest other one [N].
        nearest_fake: number of the fake nearest to each real point [N]; to_fake: its distance [N].
        nearest_real: number of the real point nearest to each fake [M]; to_real: its distance [M].
        covered: bool [N], whether a fake is in the ball; inside: bool [M], whether the fake is in a ball.
    """

    radius: np.ndarray
    own: np.ndarray
    nearest_fake: np.ndarray
    to_fake: np.ndarray
    nearest_real: np.ndarray
    to_real: np.ndarray
    covered: np.ndarray
    inside: np.ndarray

    def uncovered(self, count: int) -> list[Pair]:
        """The `count` least covered of the real points without a fake in their balls, by the nearest fake's distance over the radius.

        Balls of radius 0, around points with k copies or more of themselves, come last.
        """
        pairs = self._pairs(np.flatnonzero(~self.covered), real=True)
        return sorted(pairs, key=_farthest_first)[:count]

    def outside(self, count: int) -> list[Pair]:
        """The `count` farthest of the fakes in no ball, by the nearest real point's distance over its radius."""
        pairs = self._pairs(np.flatnonzero(~self.inside), real=False)
        return sorted(pairs, key=_farthest_first)[:count]

    def copies(self, count: int) -> list[Pair]:
        """The `count` fakes nearest to a real point, nearest first; the scale is this point's distance to the nearest other real one."""
        fakes = np.lexsort([np.arange(len(self.to_real)), self.to_real])[:count]
        return [Pair(int(r), int(f), float(self.to_real[f]), float(self.own[r])) for f in fakes for r in [self.nearest_real[f]]]

    def _pairs(self, indices: np.ndarray, real: bool) -> list[Pair]:
        """Points with their nearest neighbours of the other kind."""
        reals, fakes = (indices, self.nearest_fake[indices]) if real else (self.nearest_real[indices], indices)
        distances = (self.to_fake if real else self.to_real)[indices]
        return [Pair(*pair) for pair in zip(reals.tolist(), fakes.tolist(), distances.tolist(), self.radius[reals].tolist())]


def _farthest_first(pair: Pair) -> tuple:
    return -pair.ratio if pair.ratio is not None else np.inf, -pair.distance, pair.real, pair.fake


def one_of_a_kind(pairs: Sequence[Pair], rows: torch.Tensor, count: int) -> list[Pair]:
    """The first `count` of the pairs that no earlier one stands for.

    A pair stands for those whose image in question is nearer to its own than to their partner. Without that, a sheet would show one kind of image
    over and over, and near-copies in the data first.

    Args:
        pairs: in order.
        rows: features [len(pairs), D] of the images in question.
    """
    partner_distance = torch.tensor([pair.distance for pair in pairs], dtype=torch.float64)
    left = torch.arange(len(pairs))
    shown = []
    while len(left) and len(shown) < count:
        first, others = int(left[0]), left[1:]
        distance = torch.cat([(part.to(torch.float64) - rows[first].to(torch.float64)).norm(dim=1) for part in rows.split(ROWS_AT_ONCE)]).cpu()
        alike = distance[others] < partner_distance[others]
        shown.append(dataclasses.replace(pairs[first], stands_for=1 + int(alike.sum())))
        left = others[~alike]
    return shown


def find_neighbourhoods(
    real_features: Any, fake_features: Any, nearest_k: int = 3, *, device: torch.device | str | None = None, block: int | None = None
) -> Neighbourhoods:
    """Nearest neighbours between two sets, block by block in bounded memory.

    Args:
        real_features: [N, D] numpy array or tensor; fake_features: [M, D].
        nearest_k: neighbours that set the radius of a ball, self not counted.
        device: where to compute; default is the device of `real_features`.
        block: rows per block of distances; changes no result.

    Returns:
        The neighbourhoods. Of several neighbours at one distance the one with the lowest number is named.

    Raises:
        UserError: features that are not finite matrices of one width, or fewer than k + 1 real points.
    """
    real, fake = knn.as_features(real_features, "real"), knn.as_features(fake_features, "fake")
    reals, fakes = knn.make_point_sets(real, fake, torch.device(device) if device is not None else real.device, block)
    nearest = knn.k_nearest(reals, nearest_k, "real")
    own, radius = (reals.distances(nearest[:, place]) for place in (0, -1))
    covered, inside = _count_balls(reals, fakes, knn.radius_bound(nearest[:, -1], closed=False))
    to_fake, to_real = (torch.full((len(points),), torch.inf, dtype=nearest.dtype, device=nearest.device) for points in (reals, fakes))
    nearest_fake, nearest_real = (torch.zeros(len(points), dtype=torch.int64, device=nearest.device) for points in (reals, fakes))
    for rows, columns, squared in knn.cross_blocks(reals, fakes):
        _keep_nearest(to_fake[rows], nearest_fake[rows], squared, columns.start)
        _keep_nearest(to_real[columns], nearest_real[columns], squared.t(), rows.start)
    found = radius, own, nearest_fake, reals.distances(to_fake), nearest_real, reals.distances(to_real), covered, inside
    return Neighbourhoods(*(tensor.cpu().numpy() for tensor in found))


def _count_balls(reals: knn.PointSet, fakes: knn.PointSet, bound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which real balls hold a fake [N], and which fakes lie in a real ball [M], exactly as `metrics.prdc` counts them."""
    covered, inside = (torch.zeros(len(points), dtype=torch.bool, device=bound.device) for points in (reals, fakes))
    no_balls = bound.new_zeros(1, len(fakes))
    for rows, columns, values in knn.near_pairs(reals, bound[None], fakes, no_balls):
        within = values < bound[rows]
        covered[rows[within]] = True
        inside[columns[within]] = True
    return covered, inside


def _keep_nearest(best: torch.Tensor, index: torch.Tensor, squared: torch.Tensor, first: int) -> None:
    """Merges the columns of `squared` [n, m], numbered from `first`, into the smallest values found so far [n], in place."""
    where = squared.argmin(dim=1)
    found = squared.gather(1, where.unsqueeze(1)).squeeze(1)
    nearer = found < best  # not <=, so that the lowest number stays
    best.copy_(torch.where(nearer, found, best))
    index.copy_(torch.where(nearer, where + first, index))


def make_sheets(
    real_images: Sequence[Any],
    fake_images: Sequence[Any],
    real_features: Any,
    fake_features: Any,
    *,
    k: int = 3,
    out: pathlib.Path | str,
    count: int = 24,
    device: torch.device | str | None = None,
    fake_name: str = "",
    numbers: tuple[Sequence[int], Sequence[int]] | None = None,
) -> list[pathlib.Path]:
    """Writes three labelled sheets of image pairs and a JSON file with their numbers.

    Args:
        real_images: item i is a uint8 image [C, H, W], C = 1 to 4; only those shown are asked for. fake_images: the same.
        real_features: of the real images in their order [N, D]; fake_features: of the generated ones [M, D].
        k: neighbours that set the radius of a ball.
        out: the files' common beginning; a suffix .png or .json is dropped. The folder is created.
        count: pairs per sheet at most. Of images that are nearer to one shown than to any of the other side, that one is enough.
        device: where distances are computed; default is the device of `real_features`.
        fake_name: what made the generated images, for the JSON file.
        numbers: by which captions and the JSON file name the real and the generated images; default is their places in the sequences.

    Returns:
        The paths of STEM-uncovered.png, STEM-outside.png, STEM-copies.png and STEM.json.

    Raises:
        UserError: images and features of different number, features or images that cannot be used, or files that cannot be written.
    """
    for name, images, features in (("real", real_images, real_features), ("fake", fake_images, fake_features)):
        if len(images) != len(features):
            raise UserError(f"there are {len(images):,} {name} images and {len(features):,} rows of {name} features; one row per image is needed")
    found = find_neighbourhoods(real_features, fake_features, k, device=device)
    uncovered, outside = found.uncovered(len(found.covered)), found.outside(len(found.inside))
    real_rows, fake_rows = knn.as_features(real_features, "real"), knn.as_features(fake_features, "fake")
    looks = {
        "uncovered": one_of_a_kind(uncovered, real_rows[[pair.real for pair in uncovered]], count),
        "outside": one_of_a_kind(outside, fake_rows[[pair.fake for pair in outside]], count),
        "copies": found.copies(count),
    }
    out = pathlib.Path(out)
    stem = out.with_suffix("") if out.suffix.lower() in SUFFIXES else out
    make_folder(stem.parent)
    numbers = numbers or (range(len(real_images)), range(len(fake_images)))
    written = []
    for name, pairs in looks.items():
        cells = [_cell(name, pair, real_images[pair.real], fake_images[pair.fake], _named(pair, numbers)) for pair in pairs]
        written.append(stem.with_name(f"{stem.name}-{name}.png"))
        draw_sheet(cells, _heading(name, found), written[-1])
    written.append(stem.with_name(stem.name + ".json"))
    named = {name: [_named(pair, numbers) for pair in pairs] for name, pairs in looks.items()}
    atomic_write_text(written[-1], json.dumps({"fake": fake_name, **_as_json(found, named, k)}, indent=1) + "\n")
    return written


def _named(pair: Pair, numbers: tuple[Sequence[int], Sequence[int]]) -> Pair:
    """The pair under the numbers that its images have where they come from."""
    return dataclasses.replace(pair, real=int(numbers[0][pair.real]), fake=int(numbers[1][pair.fake]))


def _cell(name: str, pair: Pair, real_image: Any, fake_image: Any, named: Pair) -> tuple[list[Any], list[str]]:
    """The two images, the one in question first, and lines about them."""
    real, fake = (real_image, f"real {named.real}"), (fake_image, f"made {named.fake}")
    images, names = zip(*((real, fake) if name == "uncovered" else (fake, real)))
    unit = "real to real" if name == "copies" else "radii"
    measure = f"{pair.distance:.4g}" + (f" = {pair.ratio:.2f} {unit}" if pair.ratio is not None else " (the real one has copies)")
    kind = [f"1 of {pair.stands_for:,} like it" if pair.stands_for > 1 else "the only one of its kind"] if name != "copies" else []
    return list(images), [" | ".join(names), measure, *kind]


def _heading(name: str, found: Neighbourhoods) -> list[str]:
    """What a sheet shows, in two lines."""
    num_real, num_fake = len(found.covered), len(found.inside)
    missed, off = int((~found.covered).sum()), int((~found.inside).sum())
    if name == "uncovered":
        first = f"Real images without a generated one in their neighbourhood: {missed:,} of {num_real:,} (coverage {1 - missed / num_real:.3f})"
        pair, scale = "Left the real image, right the generated one nearest to it", "radii of the neighbourhood"
    elif name == "outside":
        first = f"Generated images in no real neighbourhood: {off:,} of {num_fake:,} (precision {1 - off / num_fake:.3f})"
        pair, scale = "Left the generated image, right the real one nearest to it", "radii of its neighbourhood"
    else:
        first = f"Generated images nearest to a real one, of {num_fake:,}: is anything copied?"
        pair, scale = "Left the generated image, right the real one", "distances from it to the nearest other real one (copies: far below 1)"
    order = "Nearest first" if name == "copies" else "Farthest first, one of each kind"
    return [first, f"{order}. {pair}; distance, also in {scale}."]


def _as_json(found: Neighbourhoods, looks: dict[str, list[Pair]], k: int) -> dict:
    """The numbers of the sheets."""
    return {
        "k": k,
        "num_real": len(found.covered),
        "num_fake": len(found.inside),
        "num_uncovered": int((~found.covered).sum()),
        "num_outside": int((~found.inside).sum()),
        "num_empty_balls": int((found.radius == 0).sum()),
        **{name: [{**dataclasses.asdict(pair), "ratio": pair.ratio} for pair in pairs] for name, pairs in looks.items()},
    }
