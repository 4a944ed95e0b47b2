"""The image experiments as data, one entry each: the paper's tables and figures on CIFAR-10, and this project's questions about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dnnlib import UserError
from experiments.paper import numbers

LAST = -1
FEWEST = 500  # images
COLUMNS = ("precision", "recall", "coverage", "FID")
LATENT_COLUMNS = ("precision", "coverage", "worst class", "collision", "pairing accuracy")
NEAREST_COLUMNS = ("precision", "recall", "coverage", "gap", "spacing")


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


def _few(size: int, methods: Sequence[str]) -> tuple[Row, ...]:
    """Trained on few images; in the middle of the training and at its end."""
    return tuple(Row(method, f"subset-{size}", label=f"{method}, {{kimg:,}} kimg", mark=mark) for mark in (0, LAST) for method in methods)


def _variant(name: str, title: str, *methods: str, columns: tuple[str, ...] = COLUMNS) -> tuple[ImageExperiment, ...]:
    """Other ways of pairing against the plain one, on all images and on so few that GANs collapse."""
    rows = {"": _rows("noaug", (*_PAIR, *methods)), f"-{FEWEST}": _few(FEWEST, (*_PAIR, *methods))}
    where = {"": "", f"-{FEWEST}": f", trained on {FEWEST} images"}
    return tuple(ImageExperiment(name + ending, f"{title}{where[ending]}.", rows[ending], columns) for ending in rows)


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
_AT = f"{numbers.PAPER}, "
_LATENTS = "What becomes of the latents: collisions, what a fresh probe identifies, the class that is covered worst"

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
        ImageExperiment(f"collapse-{size}", f"Trained on {size:,} images, measured against all: who collapses, and when?", _few(size, _SMALL))
        for size in (FEWEST, 2000, 5000)
    ),
    ImageExperiment("latents", f"{_LATENTS}.", _rows("noaug", _T3), LATENT_COLUMNS),
    ImageExperiment(f"latents-{FEWEST}", f"{_LATENTS}, trained on {FEWEST} images.", _rows(f"subset-{FEWEST}", _SMALL), LATENT_COLUMNS),
    *(
        ImageExperiment(
            f"nearest-{size}",
            f"Trained on {size:,} images: do real images come nearer to generated ones, or do these scatter?",
            _rows(f"subset-{size}", _SMALL),
            NEAREST_COLUMNS,
        )
        for size in (2000, 5000)
    ),
    ImageExperiment("r3gan", "R3GAN's objective with and without pairing.", _rows("noaug", ("StyleGAN2", "R3GAN", "R3GAN+Pairing"))),
    *_variant("shuffled", "A control: the pairing network sees the latents shuffled", "Pairing-GAN(shuffled)"),
    *_variant("larger-lambda", "Beyond the paper's weights, to a pairing gradient like the adversarial one", "Pairing-GAN(.20)", "Pairing-GAN(.50)"),
    *_variant("pairing-warmup", "A pairing weight that rises from 0", "Pairing-GAN(warm-up)"),
    *_variant("adaptive-weight", "A pairing weight steered to an identification accuracy", "Pairing-GAN(adaptive)"),
    *_variant("harder-tau", "A harder pairing task: higher temperatures", "Pairing-GAN(tau .2)", "Pairing-GAN(tau .5)"),
    *_variant(
        "harder-negatives",
        "A harder pairing task: more negatives, and near ones",
        *(f"Pairing-GAN({name})" for name in ("+1024", "near .5", "near .2")),
    ),
    *_variant("harder-w", "Another pairing task: the mapped latents", "Pairing-GAN(w)"),
    *_variant("binary-pairing", "Single pairs judged, against InfoNCE", "Pairing-GAN(binary)"),
    *_variant("larger-embedding", "Longer pairing embeddings", "Pairing-GAN(512)"),
    *_variant("larger-towers", "A pairing network four times as wide", "Pairing-GAN(wide)"),
    *_variant(
        "coarse-pairing",
        "The pairing network sees 8x8 pixels: no fine detail tells latents apart",
        "Pairing-GAN(coarse)",
        columns=(*COLUMNS, "collision", "pairing accuracy"),
    ),
    *_variant(
        "feature-pairing",
        "The pairing network sees the discriminator's features instead of pixels",
        "Pairing-GAN(.50)",
        "Pairing-GAN(features)",
        "Pairing-GAN(features .50)",
        columns=(*COLUMNS, "collision", "pairing accuracy"),
    ),
    ImageExperiment(
        "feature-pairing-5000",
        "The pairing network sees the discriminator's features instead of pixels, trained on 5,000 images.",
        _rows("subset-5000", (*_PAIR, "Pairing-GAN(features .50)")),
        (*COLUMNS, "gap", "spacing"),
    ),
    ImageExperiment(
        "r1-weight",
        "R1's weight without augmentation, by plain StyleGAN2's FID.",
        tuple(Row("StyleGAN2", setting, label=label) for setting, label in (("r1-.01", "R1 .01"), ("noaug", "R1 .1"), ("r1-1", "R1 1"))),
    ),
    ImageExperiment(
        "r1-weight-2000",
        "ADA on 2,000 images: does a larger R1 weight keep the collapse away by itself?",
        tuple(
            Row(f"{method}-ADA", setting, label=f"{method}-ADA, {label}")
            for setting, label in (("subset-2000", "R1 .01"), ("subset-2000-r1-.1", "R1 .1"))
            for method in _PAIR
        ),
        (*COLUMNS, "gap", "spacing", "collision"),
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
    if "all" in names:
        raise UserError("all means the paper's six experiments; give it alone, or name those that you want")
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown or not names:
        found = f"there is no image experiment {unknown[0]!r}" if unknown else "no experiment is named"
        raise UserError(f"{found}; choose among {', '.join(EXPERIMENTS)}, or all")
    return [EXPERIMENTS[name] for name in dict.fromkeys(names)]
