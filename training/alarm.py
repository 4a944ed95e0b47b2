"""Alarms: what in the past of a run says that it goes wrong while its FID may still look well. They are told and written down, and change nothing.

collapse     coverage, recall or pairing accuracy falls, or collision grows, while FID falls or stands: the images get better and fewer.
decline      FID is well above its best: the images themselves get worse, in quality, variety or both.
overfitting  D tells almost all training images by their sign (r_t of Karras et al. 2020) after it once could not, and nothing holds it back.
score gap    D's mean scores of real and of generated images drift far apart after they had come together.

An alarm needs two evaluations in a row beyond its threshold, and is over when the value is back by half of the way; in between it is told once.
All is worked out anew from the run's files each time, so a continued run neither repeats nor loses an alarm.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metrics.runs import direction
from training.history import CLASS_OR_WORST, History, read_history, read_lines, snapshot_moments, window_means
from training.run_files import ALARMS_FILE, RunDir

# Thresholds: above what sound runs do from one evaluation to the next (docs/training.md has the runs they were held against).
DROP = 0.2  # share of its best that a figure of variety may lose
GROWTH = 0.5  # share of its best that collision may gain
SMALLEST = 0.03  # change that matters at all; every figure of variety lies between 0 and 1
DEVIATIONS = 4.0  # standard deviations of a share of the images measured, below which a change may be chance
STANDS = 1.1  # FID up to this many times what it was still counts as standing
# Where an alarm is raised, and where it is clear again.
WORSE_RAISED, WORSE_CLEAR = 1.2, 1.1  # FID over its best; between STANDS and WORSE_RAISED it is noise of FIDs of 10,000 images
SIGN_RAISED, SIGN_CLEAR, SIGN_RISE = 0.9, 0.8, 0.15  # r_t, and by how much it must have risen
GAP_RAISED, GAP_CLEAR, GAP_GROWTH = 10.0, 7.0, 2.0  # between mean scores, and over the smallest gap
YOUNG = 50  # kimg in which D is ahead of every generator, so that its scores say nothing
SATURATED = 0.95  # augmentation probability from which there is no more to add

POORER = 2.0  # images are not to be compared with others of this many times their FID, or of that part of their precision

NEEDS_QUALITY = re.compile(r"(?:^|_)(?:recall|collision|pairing_acc)(?:_|$)")
VARIETY = re.compile(r"(?:^|_)(?:coverage|recall|collision|pairing_acc)(?:_|$)")
ACCURACY = "Loss/pairing/accuracy"
WORDS = {ACCURACY: "the pairing accuracy"}


@dataclasses.dataclass(frozen=True)
class Event:
    """An alarm that begins or ends.

    Attributes:
        kimg: when it was seen.
        kind: one of LOOKS.
        raised: whether it begins.
        since: kimg from which things went wrong.
        text: one sentence with the numbers and, where it begins, what one can do.
        numbers: the numbers of the sentence by name.
    """

    kimg: int
    kind: str
    raised: bool
    since: int
    text: str
    numbers: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What of a run's options the alarms have to know.

    Attributes:
        snapshot_ticks: ticks between evaluations.
        pairing: whether there is a pairing term.
        steered: whether its weight follows the accuracy, which then says nothing.
        augmentation: "noaug", "ada" or "fixed".
    """

    snapshot_ticks: int
    pairing: bool = False
    steered: bool = False
    augmentation: str = "noaug"

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Setting:
        """Out of the configuration of a run, ours or StyleGAN2-ADA's."""
        augmentation = "ada" if args.get("ada_target") is not None else "fixed" if "augment_kwargs" in args else "noaug"
        ticks = args.get("network_snapshot_ticks")
        return cls(ticks if isinstance(ticks, int) else 50, "P_kwargs" in args, "pairing_target" in args, augmentation)


@dataclasses.dataclass(frozen=True)
class _Finding:
    """What is wrong at a moment, without the advice."""

    since: int
    text: str
    numbers: dict[str, float]


Series = list[tuple[int, float]]  # (kimg, value), kimg rising


class _Past:
    """A run's past up to a moment, evaluation by evaluation."""

    def __init__(self, history: History, moments: Sequence[int], setting: Setting):
        self.setting, self.images = setting, history.images
        series = {figure: list(values.items()) for figure, values in history.figures.items() if not CLASS_OR_WORST.search(figure)}
        series |= {name: zip(moments, window_means(signal, moments)) for name, signal in history.signals.items()}
        # The first evaluation is that of a network which has seen a tick of images and learned nothing.
        self._series = {name: [(kimg, value) for kimg, value in values if kimg > moments[0] and value is not None] for name, values in series.items()}
        self.now = 0

    def series(self, name: str) -> Series:
        """What was known of a figure or statistic."""
        return [(kimg, value) for kimg, value in self._series.get(name, []) if kimg <= self.now]

    def varieties(self) -> list[str]:
        """Figures of variety, measured or from the training."""
        named = [name for name in self._series if VARIETY.search(name) and "/" not in name]
        return named + ([ACCURACY] if ACCURACY in self._series and not self.setting.steered else [])

    def most_measured(self, belongs: Callable[[str], bool]) -> tuple[str, Series]:
        """The figure of a kind that was measured most often, or an empty name."""
        names = sorted(filter(belongs, self._series), key=lambda name: (-len(self._series[name]), name))
        return (names[0], self.series(names[0])) if names else ("", [])

    def comparable(self, name: str) -> Series:
        """A figure of variety at moments whose images were about as good as those of now.

        Noise may cover everything and never collide: early figures of recall, collision and latent identification are worth nothing, and those
        without a measure of quality beside them neither.
        """
        fids, precisions = self.most_measured(_is_fid)[1], self.most_measured(lambda figure: figure.endswith("precision"))[1]
        if NEEDS_QUALITY.search(name) and not fids and not precisions:
            return []

        def passes(kimg: int) -> bool:
            fid, precision = _at(fids, kimg), _at(precisions, kimg)
            return (fid is None or fid <= POORER * fids[-1][1]) and (precision is None or POORER * precision >= precisions[-1][1])

        return [(kimg, value) for kimg, value in self.series(name)[:-2] if passes(kimg)]


def _is_fid(figure: str) -> bool:
    return figure.startswith("fid")


def _margin(best: float, downwards: bool, images: int | None) -> float:
    """Change of a figure of variety that counts as worse."""
    chance = DEVIATIONS * math.sqrt(max(best * (1 - best), 0) / images) if images else 0.0
    return max(best * (GROWTH if downwards else DROP), SMALLEST, chance)


def _decline(past: _Past, name: str, active: bool) -> tuple[float, _Finding] | None:
    """How far a figure of variety is past its threshold, and the finding; None where it is not."""
    last, before = past.series(name)[-2:], past.comparable(name)
    if len(before) < 2:
        return None
    sign = 1 if direction(name) == "lower" else -1
    # The best that was held for two evaluations: the best of all is mostly luck.
    held = [(kimg, sign * max(sign * earlier, sign * value)) for (_, earlier), (kimg, value) in itertools.pairwise(before)]
    since, best = min(held, key=lambda point: sign * point[1])
    margin = _margin(best, sign > 0, past.images.get(name))
    worse = [sign * (value - best) / margin for _, value in last]
    if worse[-1] <= 0.5 or (not active and min(worse) <= 1):
        return None
    quality, fids = past.most_measured(_is_fid)
    fid = [_at(fids, since), _at(fids, past.now)]
    if not active and None not in fid and fid[1] > STANDS * fid[0]:
        return None
    now, value = last[-1]
    verb = "grew" if sign > 0 else "fell"
    beside = f" while {quality} went from {fid[0]:.4g} to {fid[1]:.4g}" if None not in fid else ""
    text = f"{WORDS.get(name, name)} {verb} from {best:.3f} at {since} kimg to {value:.3f} at {now} kimg{beside}: the generator loses variety"
    numbers = {name: value, f"best {name}": best} | ({quality: fid[1], f"{quality} then": fid[0]} if None not in fid else {})
    return worse[-1], _Finding(since, text, numbers)


def _collapse(past: _Past, active: bool) -> _Finding | None:
    declines = [decline for name in past.varieties() if (decline := _decline(past, name, active))]
    return max(declines, key=lambda decline: decline[0])[1] if declines else None


def _falling_off(past: _Past, active: bool) -> _Finding | None:
    quality, fids = past.most_measured(_is_fid)
    if len(fids) < 4:
        return None
    held = [(kimg, max(earlier, value)) for (_, earlier), (kimg, value) in itertools.pairwise(fids[:-2])]
    since, best = min(held, key=lambda point: point[1])
    now, value = fids[-1]
    begins = min(value, fids[-2][1]) > WORSE_RAISED * best
    if not (value > WORSE_CLEAR * best if active else begins):
        return None
    text = f"{quality} rose from {best:.4g} at {since} kimg to {value:.4g} at {now} kimg: the images get worse"
    return _Finding(since, text, {quality: value, f"best {quality}": best})


def _at(series: Series, kimg: int) -> float | None:
    """The last value not after a moment."""
    return next((value for moment, value in reversed(series) if moment <= kimg), None)


def _grown_up(series: Series) -> Series:
    return [(kimg, value) for kimg, value in series if kimg >= YOUNG]


def _overfitting(past: _Past, active: bool) -> _Finding | None:
    signs, strengths = _grown_up(past.series("Loss/signs/real")), past.series("Progress/augment")
    if len(signs) < 3:
        return None
    since, low = min(signs[:-2], key=lambda point: point[1])
    now, value = signs[-1]
    held = past.setting.augmentation == "ada" and (not strengths or strengths[-1][1] < SATURATED)  # ADA has not done all it can
    begins = not held and min(value, signs[-2][1]) > SIGN_RAISED and value > low + SIGN_RISE
    if not (value > SIGN_CLEAR if active else begins):
        return None
    strength = f" with augmentation {strengths[-1][1]:.2f}" if strengths else ""
    text = f"r_t, D's mean sign on training images, rose from {low:.2f} at {since} kimg to {value:.2f} at {now}{strength}: D learns them by heart"
    return _Finding(since, text, {"r_t": value, "lowest r_t": low})


def _score_gap(past: _Past, active: bool) -> _Finding | None:
    fake = dict(past.series("Loss/scores/fake"))
    gaps = _grown_up([(kimg, real - fake[kimg]) for kimg, real in past.series("Loss/scores/real") if kimg in fake])
    if len(gaps) < 3:
        return None
    since, low = min(gaps[:-2], key=lambda point: point[1])
    now, value = gaps[-1]
    begins = min(value, gaps[-2][1]) > GAP_RAISED and value > GAP_GROWTH * low
    if not (value > GAP_CLEAR if active else begins):
        return None
    text = f"D scores real images {value:.1f} above generated ones at {now} kimg, {low:.1f} at {since} kimg: it runs away from the generator"
    return _Finding(since, text, {"gap": value, "lowest gap": low})


LOOKS: dict[str, Callable[[_Past, bool], _Finding | None]] = {
    "collapse": _collapse,
    "decline": _falling_off,
    "overfitting": _overfitting,
    "score gap": _score_gap,
}


def _advice(kind: str, setting: Setting, since: int) -> str:
    more = "" if setting.augmentation == "ada" else "--aug=ada, "
    pairing = "a higher --pairing-weight" if setting.pairing else "--pairing-weight=0.05"
    # R1 first: on 2,000 images a larger weight kept a collapse away by itself (docs/results/cifar10-2000.md).
    first = {"collapse": f"a higher --gamma, {pairing}, {more}", "decline": more, "overfitting": more, "score gap": f"a higher --gamma, {more}"}[kind]
    return f"{first}more data, or an end at the snapshot of {since} kimg may help"


def find_events(history: History, moments: Sequence[int], setting: Setting) -> list[Event]:
    """Every alarm that began or ended in a run's past.

    Args:
        history: figures and statistics.
        moments: kimg of the evaluations, rising.
        setting: of the run.
    """
    past, active, found = _Past(history, moments, setting), {}, []
    for past.now in moments:
        for kind, look in LOOKS.items():
            finding = look(past, kind in active)
            if finding and kind not in active:
                active[kind] = Event(past.now, kind, True, finding.since, f"{finding.text}; {_advice(kind, setting, finding.since)}", finding.numbers)
                found.append(active[kind])
            elif finding is None and kind in active:
                begun = active.pop(kind)
                found.append(Event(past.now, kind, False, begun.kimg, f"what was seen at {begun.kimg} kimg is over", {}))
    return found


def open_alarms(events: Sequence[Event]) -> list[Event]:
    """Alarms that have begun and not ended."""
    last = {event.kind: event for event in events}
    return [event for event in last.values() if event.raised]


def past_events(run: RunDir, args: Mapping[str, Any], now: int | None = None) -> list[Event]:
    """Every alarm of the run in a folder, from its files; `now` as for `snapshot_moments`."""
    history, setting = read_history(run.path), Setting.of(args)
    return find_events(history, snapshot_moments(history, setting.snapshot_ticks, now), setting)


def watch(run: RunDir, args: Mapping[str, Any], now: int) -> list[str]:
    """After an evaluation at `now` kimg: appends what began or ended to the run's alarms.jsonl and returns it as lines to print.

    A file that cannot be written is told in a line: training is worth more than an alarm.
    """
    known = {(line.get("kimg"), line.get("kind"), line.get("raised")) for line in read_lines(run / ALARMS_FILE)}
    fresh = [event for event in past_events(run, args, now) if event.kimg == now and (now, event.kind, event.raised) not in known]
    lines = [f"{'Alarm' if event.raised else 'Alarm over'} ({event.kind}): {event.text}." for event in fresh]
    try:
        if fresh:
            with open(run / ALARMS_FILE, "a", encoding="utf-8") as handle:
                handle.writelines(json.dumps(dataclasses.asdict(event) | {"timestamp": time.time()}) + "\n" for event in fresh)
    except OSError as error:
        lines.append(f"Warning: {run / ALARMS_FILE} cannot be written: {error.strerror or error}")
    return lines
