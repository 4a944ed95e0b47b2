"""The image experiments as data, one entry each: the paper's tables and figures on CIFAR-10, and this project's questions about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dnnlib import UserError
from experiments.paper import numbers

LAST = -1
COLUMNS = ("precision", "recall", "coverage", "FID")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: the runs of a method in a setting.

    Attributes:
        method: name in `experiments.images.methods`; empty for published figures that belong to no run.
        setting: name in the budgets.
        paper: column -> published figure.
        label: of the row, if it is not the method's name; {kimg} in it is where the row looks.
        mark: at which of the setting's marks the row looks (`budgets.Regime.all_marks`).
    """

    method: str
    setting: str
    paper: dict[str, float] = dataclasses.field(default_factory=dict)
    label: str = ""
    mark: int = LAST


@dataclasses.dataclass(frozen=True)
class ImageExperiment:
    """One table, figure or question.

    Attributes:
        name: on the command line.
        title: one sentence.
        rows: in order.
        columns: in order.
        source: where the published figures stand; empty without any.
        claims: ids of the claims to judge (`experiments.images.claims`).
        of_paper: whether the paper shows it; `all` means these.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = COLUMNS
    source: str = ""
    claims: tuple[str, ...] = ()
    of_paper: bool = False


def _rows(setting: str, methods: Sequence[str], paper: numbers.Figures | None = None) -> tuple[Row, ...]:
    return tuple(Row(method, setting, (paper or {}).get(method, {})) for method in methods)


def _question(name: str, title: str, setting: str, methods: Sequence[str]) -> ImageExperiment:
    return ImageExperiment(name, title, _rows(setting, methods))


def _collapse(setting: str) -> tuple[Row, ...]:
    """Few images, in the middle of the training and at its end."""
    return tuple(Row(method, setting, label=f"{method}, {{kimg:,}} kimg", mark=mark) for mark in (0, LAST) for method in _SMALL)


def _half_and_full() -> tuple[Row, ...]:
    """Appendix B: two lengths, with and without ADA; its printed rows belong to none of them for certain."""
    rows = []
    for setting, ending, words in (("noaug-long", "", "no ADA"), ("ada", "-ADA", "ADA")):
        for mark in (0, LAST):
            rows += [Row(method + ending, setting, label=f"{method}, {words}, {{kimg:,}} kimg", mark=mark) for method in ("StyleGAN2", "Pairing-GAN")]
    printed = [Row("", "", figures, label=f"{method}, as printed, unassigned") for method, figures in numbers.TABLE_B.items()]
    return (*rows, *printed)


_PAIR = ("StyleGAN2", "Pairing-GAN")
_SMALL = (*_PAIR, "MS-GAN(+R1)", "StyleGAN2-ADA", "Pairing-GAN-ADA")
_T3, _T4 = tuple(numbers.TABLE3), tuple(numbers.TABLE4)
_LAMBDAS = ("StyleGAN2", "Pairing-GAN(.01)", "Pairing-GAN", "Pairing-GAN(.10)")
_LARGER = ("Pairing-GAN(.20)", "Pairing-GAN(.50)")
_AT = f"{numbers.PAPER}, "

_ALL = (
    ImageExperiment(
        "table3",
        "Table 3: class-conditional CIFAR-10 without augmentation.",
        _rows("noaug", _T3, numbers.TABLE3),
        source=_AT + "Table 3",
        claims=("C4", "C4b"),
        of_paper=True,
    ),
    ImageExperiment(
        "table4",
        "Table 4: class-conditional CIFAR-10 with ADA.",
        _rows("ada", _T4, numbers.TABLE4),
        source=_AT + "Table 4",
        claims=("C5",),
        of_paper=True,
    ),
    ImageExperiment(
        "tableB",
        "Appendix B: two lengths, with and without ADA.",
        _half_and_full(),
        source=_AT + "Appendix B, whose printed rows do not say to which length they belong",
        of_paper=True,
    ),
    ImageExperiment(
        "tableC",
        "Appendix C: the pairing weight without augmentation.",
        _rows("noaug", _LAMBDAS, {**numbers.TABLE_C, "StyleGAN2": numbers.TABLE3["StyleGAN2"]}),
        source=_AT + "Appendix C; StyleGAN2 from Table 3",
        claims=("C6",),
        of_paper=True,
    ),
    ImageExperiment(
        "figure4", "Figure 4: precision against recall and coverage over training, without augmentation.", _rows("noaug", _T3), of_paper=True
    ),
    ImageExperiment("figure5", "Figure 5: precision against recall and coverage over training, with ADA.", _rows("ada", _T4), of_paper=True),
    *(
        ImageExperiment(
            f"collapse-{size}", f"Trained on {size:,} images, measured against all: who collapses, and when?", _collapse(f"subset-{size}")
        )
        for size in (500, 2000, 5000)
    ),
    _question("shuffled", "A control: the pairing network sees the latents shuffled.", "noaug", (*_PAIR, "Pairing-GAN(shuffled)")),
    _question("larger-lambda", "Beyond the paper's weights: a pairing gradient as large as the adversarial one.", "noaug", (*_PAIR, *_LARGER)),
    _question("r3gan", "R3GAN's objective with and without pairing.", "noaug", ("StyleGAN2", "R3GAN", "R3GAN+Pairing")),
    _question("harder-tau", "A harder pairing task: higher temperatures.", "noaug", (*_PAIR, "Pairing-GAN(tau .2)", "Pairing-GAN(tau .5)")),
    _question("harder-w", "Another pairing task: the mapped latents.", "noaug", (*_PAIR, "Pairing-GAN(w)")),
    _question("harder-embedding", "Longer pairing embeddings.", "noaug", (*_PAIR, "Pairing-GAN(512)")),
    _question(
        "harder-negatives",
        "A harder pairing task: more negatives, and near ones.",
        "noaug",
        (*_PAIR, *(f"Pairing-GAN({name})" for name in ("+1024", "near .5", "near .2"))),
    ),
    _question("pairing-warmup", "A pairing weight that rises from 0.", "noaug", (*_PAIR, "Pairing-GAN(warm-up)")),
    _question("binary-pairing", "Single pairs judged, against InfoNCE.", "noaug", (*_PAIR, "Pairing-GAN(binary)")),
    _question("adaptive-weight", "A pairing weight steered to an identification accuracy.", "noaug", (*_PAIR, "Pairing-GAN(adaptive)")),
    ImageExperiment(
        "r1-weight",
        "R1's weight without augmentation, by plain StyleGAN2's FID.",
        tuple(Row("StyleGAN2", setting, label=label) for setting, label in (("r1-.01", "R1 .01"), ("noaug", "R1 .1"), ("r1-1", "R1 1"))),
    ),
)
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def choose(names: Sequence[str]) -> list[ImageExperiment]:
    """The experiments of those names, without repetitions; the paper's for ("all",).

    Raises:
        UserError: an unknown name, or none at all.
    """
    if tuple(names) == ("all",):
        return [experiment for experiment in EXPERIMENTS.values() if experiment.of_paper]
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown or not names:
        found = f"there is no image experiment {unknown[0]!r}" if unknown else "no experiment is named"
        raise UserError(f"{found}; choose among {', '.join(EXPERIMENTS)}, or all")
    return [EXPERIMENTS[name] for name in dict.fromkeys(names)]
