"""What the page shows: images of a generator, their nearest real images, and the map of its latents. Knows nothing of HTTP.

Every public method may be called from several threads.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch

from dnnlib import EasyDict, UserError
from experiments.explore.latents import find_collisions, plane
from metrics import knn
from metrics.collectors import Rows
from metrics.collision import near_share
from metrics.detectors import Detector, get_detector
from metrics.feature_cache import FeatureCache
from metrics.perceptual_path_length import great_circle
from metrics.sides import DataSide, PassOptions
from training.dataset import ImageFolderDataset
from training.images import to_pil
from training.networks import Generator
from training.sampling import Renderer, default_batch, one_hot, seed_latents

NEAREST_K = 3  # neighbours that set the radius of a real image, as in the collision metric
REAL_BATCH = 64
WORST_PAIRS = 6
MAPS_KEPT = 16
MOST_PAIRED = 2000  # real images whose pairs are looked at
READING = {"state": "working", "doing": "reading the real images", "done": 0.0}
WAITING = {"state": "working", "doing": "waiting for another map", "done": 0.0}


@dataclasses.dataclass(frozen=True)
class View:
    """One image: a seed, or a place on the way from it to another.

    Attributes:
        seed: where the way starts; to: where it ends.
        t: share of the way, 0..1.
        space: "z" walks on a great circle, "w" on a line.
        label: class; None for networks without labels.
        trunc: truncation psi.
    """

    seed: int
    to: int | None = None
    t: float = 0.0
    space: str = "z"
    label: int | None = None
    trunc: float = 1.0


class Explorer:
    """A generator and real images to set beside it.

    Args:
        G: in eval mode; it is moved to `device`.
        dataset: real images of its size.
        device: where to compute.
        num_latents: of the map, at least 3.
        num_real: real images to compare with, a random choice if there are more; at least 4.
        cache: keeps the features of the real images from one start to the next.

    Raises:
        UserError: real images of another size or kind.
    """

    def __init__(self, G: Generator, dataset: ImageFolderDataset, device: torch.device, num_latents: int, num_real: int, cache: FeatureCache):
        if (found := tuple(dataset.image_shape[1:])) != G.img_size:
            sizes = [f"{width}x{height}" for height, width in (G.img_size, found)]
            raise UserError(f"the network makes images of {sizes[0]} pixels, but {dataset.path} holds {sizes[1]}; give others with --data")
        self.G, self.dataset, self.device = G.to(device), dataset, device
        self.num_latents, self.num_real, self.cache = num_latents, min(num_real, len(dataset)), cache
        self.detector: Detector = get_detector("embedded", device)
        self._computing = threading.Lock()  # one image or batch at a time, so that a map in the making does not keep images waiting
        self._real: EasyDict | None = None
        self._maps: collections.OrderedDict[tuple, dict] = collections.OrderedDict()
        self._wanted: tuple | None = None
        self._failure: dict[str, Any] | None = None
        self._changed = threading.Condition()

    # Pictures.

    def render(self, view: View) -> torch.Tensor:
        """The image of a view, uint8 [C, R, R] on the CPU."""
        with self._computing:
            renderer = self._renderer(view.trunc)
            return next(renderer.render(self._ws(view, renderer), [view.seed]))

    def image(self, view: View) -> bytes:
        """A view as PNG."""
        return as_png(self.render(view))

    def real_image(self, index: int) -> bytes:
        """A real image as PNG, `index` being its number in the data set."""
        with self._computing:
            return as_png(torch.from_numpy(self.dataset[index][0]))

    def nearest(self, view: View, count: int = 8) -> dict[str, Any]:
        """The real images nearest to a view, nearest first, with distances also in radii: below 1 the view is in their neighbourhood."""
        real = self._real
        if real is None:
            return self._failure or READING
        image = self.render(view)
        with self._computing:
            features = self.detector(image[None].to(self.device)).cpu()
        distances = torch.linalg.vector_norm(real.rows - features, dim=1)
        chosen = distances.argsort(stable=True)[:count]
        rows = [
            {"index": int(real.indices[at]), "distance": float(distances[at]), "radii": float(distances[at] / real.radii[at].clamp(min=1e-12))}
            for at in chosen.tolist()
        ]
        for row in rows:
            row["label"] = self._label(row["index"])
        return {"state": "ready", "covered_by": int((distances < real.radii).sum()), "real": rows}

    # The map.

    def map(self, label: int | None, trunc: float) -> dict[str, Any]:
        """The map of one class, or how far it is: {"state": "working" | "failed" | "ready", ...}. Asking starts the work, and asking again keeps it
        wanted: what nobody asks for any more waits."""
        key = (label, trunc)
        with self._changed:
            if self._failure is not None:
                return self._failure
            if key not in self._maps:
                self._maps[key] = WAITING
                while len(self._maps) > MAPS_KEPT:
                    self._maps.popitem(last=False)
            if self._maps[key] is WAITING:
                self._wanted = key
                self._changed.notify()
            return READING if self._real is None else self._maps[key]

    def work(self) -> None:
        """Prepares the real images, then makes one map after another, the one last asked for, for ever: the body of a background thread."""
        self._failure = _failure_of(self._prepare_real)
        while self._failure is None:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None)
                key, self._wanted = self._wanted, None
            failure = _failure_of(lambda key=key: self._put(key, self._survey(*key)))
            if failure is not None:
                self._put(key, failure)

    def _put(self, key: tuple, state: dict[str, Any]) -> None:
        with self._changed:
            if key in self._maps:
                self._maps[key] = state

    def _survey(self, label: int | None, trunc: float) -> dict[str, Any]:
        """The latents of seeds 0, 1, 2, ..., their images' features, and what collides."""
        z, w, features = seed_latents(range(self.num_latents), self.G.z_dim), [], []
        renderer, doing = self._renderer(trunc), f"making {self.num_latents:,} images"
        self._put((label, trunc), {"state": "working", "doing": doing, "done": 0.0})
        for part in z.split(renderer.batch):
            with self._computing:
                ws = renderer.map(part, one_hot([label] * len(part), self.G.c_dim))
                images = torch.stack(list(renderer.render(ws, range(len(ws)))))
                features.append(self.detector(images.to(self.device)).cpu())
            w.append(ws[:, 0])
            done = sum(map(len, w)) / self.num_latents
            self._put((label, trunc), {"state": "working", "doing": doing, "done": done})
        features = torch.cat(features)
        found = find_collisions(z, features, self._real.radius)
        layouts = {"z": plane(z), "w": plane(torch.cat(w)), "images": plane(features)}
        return {
            "state": "ready",
            "collision": found.share,
            "among_real": self._near_among_real(label),
            "radius": self._real.radius,
            "layouts": {name: [[round(value, 4) for value in point] for point in places.tolist()] for name, places in layouts.items()},
            "shares": [round(value, 5) for value in found.per_latent.tolist()],
            "partners": found.partner.tolist(),
            "worst": _worst_pairs(found.partner, found.distance),
        }

    def _near_among_real(self, label: int | None) -> float | None:
        """Share of the pairs of real images, of one class if one is given, that are near; None where there are too few to say."""
        real = self._real
        if label is None:
            chosen = real.rows
        elif self._has_classes():
            chosen = real.rows[torch.tensor([self._label(index) == label for index in real.indices.tolist()])]
        else:
            return None
        return near_share(chosen[:: -(-len(chosen) // MOST_PAIRED)], real.radius) if len(chosen) > 1 else None

    def _prepare_real(self) -> None:
        """Features and radii of the real images."""
        side = DataSide(lambda **overrides: self.dataset, self.dataset.name, self.cache)
        want = side.request(self.detector, Rows, self.num_real, sampled=True)
        rows = side.collect({want: self.detector}, PassOptions(REAL_BATCH, self.device, progress=True))[want]["rows"]
        points, _ = knn.make_point_sets(rows, rows, rows.device)
        radii = knn.kth_distance(points, NEAREST_K, "real").float()
        radius = float(radii.median())
        if radius == 0:
            raise UserError(f"half of the images of {self.dataset.path} or more have {NEAREST_K} copies of themselves; distinct real data is needed")
        self._real = EasyDict(rows=rows, indices=want.indices(), radii=radii, radius=radius)

    # Parts.

    def _renderer(self, trunc: float) -> Renderer:
        return Renderer(self.G, self.device, default_batch(self.G.img_size, self.device), trunc)

    def _ws(self, view: View, renderer: Renderer) -> torch.Tensor:
        """The ws [1, num_ws, w_dim] of a view."""
        c = one_hot([view.label], self.G.c_dim)
        if view.to is None:
            return renderer.map(seed_latents([view.seed], self.G.z_dim), c)
        ends = seed_latents([view.seed, view.to], self.G.z_dim)
        if view.space == "w":
            start, end = renderer.map(ends, c.expand(2, -1)).split(1)
            return start.lerp(end, view.t)
        same = view.seed == view.to
        z = ends[:1] if same else great_circle(ends[:1], ends[1:], torch.tensor([view.t], dtype=torch.float64)).float()
        return renderer.map(z, c)

    def _label(self, index: int) -> int | None:
        """The class of a real image; None without classes."""
        return int(self.dataset.get_details(index).raw_label) if self._has_classes() else None

    def _has_classes(self) -> bool:
        return self.dataset.has_labels and self.dataset.has_onehot_labels


def _failure_of(action: Callable[[], None]) -> dict[str, Any] | None:
    """Runs it; what to tell the page if it fails. The page goes on without what failed."""
    try:
        action()
    except UserError as error:
        return {"state": "failed", "why": str(error)}
    except (RuntimeError, MemoryError, OSError):  # a device out of memory, say
        traceback.print_exc()
        return {"state": "failed", "why": "this could not be made; the terminal says why"}
    return None


def _worst_pairs(partner: torch.Tensor, distance: torch.Tensor) -> list[dict[str, Any]]:
    """The far pairs with the nearest images, nearest first, each once."""
    pairs: dict[tuple[int, int], float] = {}
    for seed in distance.argsort(stable=True).tolist():
        if partner[seed] != seed:
            pairs.setdefault(tuple(sorted((seed, int(partner[seed])))), float(distance[seed]))
        if len(pairs) == WORST_PAIRS:
            break
    return [{"seeds": list(pair), "distance": value} for pair, value in pairs.items()]


def as_png(image: torch.Tensor) -> bytes:
    """An image uint8 [C, H, W] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()
