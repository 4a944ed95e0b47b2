"""Budgets: how long, how large and how measured the runs of every setting are. Data only.

A setting is a training set and a length ("noaug" is Table 3's). Each budget gives it numbers of its own, and figures of different budgets are
never mixed: the budget's name is part of a run's folder, and stands with its detector in the head of every table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dnnlib import UserError
from metrics.registry import parse_metrics


@dataclasses.dataclass(frozen=True)
class R1:
    """Weight of the R1 penalty, and why it is that."""

    gamma: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Regime:
    """A setting at one budget.

    Attributes:
        kimg: length.
        marks: kimg at which tables look at a run, besides its end, which is the last of them.
        subset: images trained on; None: all. Such runs are measured against all images.
        r1: instead of the budget's.
        usual: the setting that differs in nothing but the budget's own R1 weight; empty without `r1`.
    """

    kimg: int
    marks: tuple[int, ...] = ()
    subset: int | None = None
    r1: R1 | None = None
    usual: str = ""

    @property
    def all_marks(self) -> tuple[int, ...]:
        """Where tables look, in kimg, the end last."""
        return (*(mark for mark in self.marks if mark < self.kimg), self.kimg)


@dataclasses.dataclass(frozen=True)
class Budget:
    """One budget.

    Attributes:
        name: as on the command line.
        title: what it is, for the head of a table.
        options: of train.py, for all runs.
        spacing: kimg between snapshots, about.
        metrics: of every snapshot.
        detector: of all metrics; None: each metric's own.
        looking: of `calc_metrics.py show` for the sheets of the first seed's last snapshot; the protocol of the table's coverage.
        columns: column of a table -> (metric, end of its figure's name). Metrics that are not among `metrics` are taken of the last snapshot alone.
        seeds: by default.
        r1: augmentation -> weight.
        regimes: setting -> numbers.
        same: setting -> another one whose runs serve it as well.
        data: training set by default; empty: the digits, written into the results folder.
        note: what a reader of its figures must know.
        beside: what a reader must know where published figures stand beside them.
        precision: of train.py by default; one that every machine has, so that runs from several can stand in one table, or auto.
    """

    name: str
    title: str
    options: tuple[str, ...]
    spacing: int
    metrics: tuple[str, ...]
    detector: str | None
    looking: tuple[str, ...]
    columns: Mapping[str, tuple[str, str]]
    seeds: int
    r1: Mapping[str, R1]
    regimes: Mapping[str, Regime]
    data: str
    note: str
    same: Mapping[str, str] = dataclasses.field(default_factory=dict)
    precision: str = "fp32"
    beside: str = ""

    def setting(self, name: str) -> str:
        """The setting whose runs serve this one."""
        return self.same.get(name, name)

    def r1_weight(self, setting: str, augmentation: str) -> R1:
        """R1's weight of a setting's runs."""
        return self.regimes[setting].r1 or self.r1[augmentation]

    def end_metrics(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Metrics of the last snapshot alone that the columns of a table need; a budget need not measure every column."""
        wanted = dict.fromkeys(self.columns[column][0] for column in columns if column in self.columns)
        return tuple(metric for metric in wanted if metric not in self.metrics)

    def figure(self, column: str) -> str | None:
        """Name of a column's figure in metric-*.jsonl; None where the budget does not measure it."""
        if column not in self.columns:
            return None
        metric, ending = self.columns[column]
        (spec,) = parse_metrics([metric], self.detector)
        return spec.name + ending


def _prdc(metric: str) -> dict[str, tuple[str, str]]:
    return {name: (metric, f"_{name}") for name in ("precision", "recall", "coverage")}


_LATENTS = {"collision": ("collision", ""), "pairing accuracy": ("pairing_acc", ""), "worst class": ("coverage_classwise", "_worst")}
_NEAREST = {name: ("nearest10k", f"_{name}") for name in ("gap", "spacing")}


def _r1_sweep(kimg: int) -> dict[str, Regime]:
    """StyleGAN2 without augmentation under other R1 weights, which decides the weight for all methods."""
    weights = {"r1-.01": 0.01, "r1-1": 1.0}
    return {name: Regime(kimg, r1=R1(gamma, "part of the search for R1's weight"), usual="noaug") for name, gamma in weights.items()}


def _r1_on_few(kimg: int, share: float = 1) -> dict[str, Regime]:
    """ADA's runs on 2,000 images, whose own weight is a tenth of the others', at theirs."""
    r1 = R1(0.1, "the weight of the runs without augmentation, to tell its part from that of the method")
    return {"subset-2000-r1-.1": Regime(kimg, marks=(kimg // 2,), subset=round(2000 * share), r1=r1, usual="subset-2000")}


def _subsets(few: int, more: int, share: float = 1) -> dict[str, Regime]:
    """The collapse-prone regime: few images, where the fewer they are the sooner figures turn down.

    Tables look at the middle, too: figures may have turned by the end.

    Args:
        few, more: kimg on the fewest images and on more of them.
        share: of the images that is taken.
    """
    lengths = {500: few, 2000: more, 5000: more}
    return {f"subset-{size}": Regime(kimg, marks=(kimg // 2,), subset=round(size * share)) for size, kimg in lengths.items()}


_MEASURED = "ten times the preset's, since no number is published; at the short budget .01 covers less, and 1 is not told from it"
_PRESET = "the preset's own"
_R1 = {"noaug": R1(0.1, _MEASURED), "ada": R1(0.01, _PRESET)}

_ALL = (
    Budget(
        "smoke",
        "smoke: 1 kimg of a tiny network, a test of the machinery and no result",
        ("--cfg=demo", "--cond=1", "--tick=1", "--snap=1"),
        spacing=1,
        metrics=("prdc10k5",),
        detector="embedded",
        looking=("--nearest-k=5",),
        columns={**_prdc("prdc10k5"), "worst class": _LATENTS["worst class"], **_NEAREST},
        seeds=1,
        r1=_R1,
        regimes={
            "noaug": Regime(1, marks=(0,)),
            "ada": Regime(1, marks=(0,)),
            **_subsets(1, 1, share=0.04),
            **_r1_sweep(1),
            **_r1_on_few(1, share=0.04),
        },
        same={"noaug-long": "noaug"},
        data="",
        note="Figures of the smoke budget say that everything runs, and nothing about the methods.",
    ),
    Budget(
        "short",
        "short: --cfg=cifar-small, a 64th of the arithmetic of --cfg=cifar",
        ("--cfg=cifar-small", "--cond=1", "--tick=5", "--snap=3"),
        spacing=15,
        metrics=("fid10k", "prdc10k5"),
        detector="embedded",
        looking=("--nearest-k=5", "--samples=10000"),
        columns={**_prdc("prdc10k5"), "FID": ("fid10k", ""), **_LATENTS, **_NEAREST},
        seeds=3,
        r1=_R1,
        regimes={"noaug": Regime(60, marks=(30,)), "ada": Regime(60, marks=(30,)), **_subsets(240, 300), **_r1_sweep(60), **_r1_on_few(300)},
        same={"noaug-long": "noaug"},
        data="datasets/cifar10-train.zip",
        note="A small network and a small detector; precision, recall and coverage with k = 5, single classes and collisions with k = 3; FID of "
        "10,000 images.",
        beside="The published figures are of a larger network, at least 130 times the training, another detector and k = 3: they stand here for the "
        "order of the methods, not for the level.",
    ),
    Budget(
        "paper",
        "paper: --cfg=cifar at the published lengths",
        ("--cfg=cifar", "--cond=1", "--tick=20", "--snap=50"),
        spacing=1000,
        metrics=("fid50k_full", "prdc50k3"),
        detector=None,
        looking=("--nearest-k=3",),
        columns={**_prdc("prdc50k3"), "FID": ("fid50k_full", ""), **_LATENTS, **_NEAREST},
        seeds=3,
        r1=_R1,
        regimes={
            "noaug": Regime(8000),
            "noaug-long": Regime(25000, marks=(15000,)),
            "ada": Regime(25000, marks=(15000,)),
            **_subsets(4000, 4000),
            **_r1_sweep(8000),
            **_r1_on_few(4000),
        },
        data="datasets/cifar10-train.zip",
        precision="auto",
        note="Precision, recall and coverage from 50,000 real and 50,000 generated images by VGG16, k = 3, under which a perfect generator has a "
        "coverage of 0.875.",
    ),
)
BUDGETS = {budget.name: budget for budget in _ALL}


def find_budget(name: str) -> Budget:
    """The budget of that name. Raises UserError if there is none."""
    if name not in BUDGETS:
        raise UserError(f"there is no budget {name!r}; choose among {', '.join(BUDGETS)}")
    return BUDGETS[name]
