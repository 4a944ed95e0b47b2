"""Run folders as train.py and calc_metrics.py leave them, of a few kilobytes, and tables about them: what a report is made from."""

import json
import re
import statistics

import numpy as np
from PIL import Image

from experiments.images.claims import Verdict
from experiments.images.results import RunResult, TableResult, TableRow

PROTOCOL = {"detector": "embedded", "detector_digest": "ab" * 32, "n_real": 1000, "n_fake": 1000, "k": 5, "seed": 0, "dataset": "cd" * 32}
KIMG = (0, 20, 40, 60)
EDGE = 16
FIGURES = ("prdc10k5_embedded_precision", "prdc10k5_embedded_recall", "prdc10k5_embedded_coverage", "fid10k_embedded")
COLUMNS = ("precision", "recall", "coverage", "FID")
PAPER = {"precision": 0.673, "recall": 0.425, "coverage": 0.637, "FID": 9.219}


def make_values(number, seed):
    """figure -> kimg -> value of a run: all different, and plausible."""
    values = {}
    for place, figure in enumerate(FIGURES):
        bend = [0.03 * ((kimg // 20 + place) % 3) for kimg in KIMG]  # so that no figure is a linear function of another
        rise = [0.1 + 0.002 * k + 0.05 * place + 0.03 * number + 0.004 * seed * (1 + place) + more for k, more in zip(KIMG, bend)]
        values[figure] = dict(zip(KIMG, [round(9.0 / value, 6) if place == 3 else round(value, 6) for value in rise]))
    return values


def write_sheet(path, colour, columns=10, rows=6):
    """A sheet of samples of one colour with a texture."""
    pixels = np.random.RandomState(colour).randint(0, 60, [rows * EDGE, columns * EDGE, 3]) + np.array([colour, 255 - colour, 120]) * 0.7
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_run(folder, method, seed, number=0, options=None, values=None, kimg=KIMG, budget="", setting=""):
    """A measured run with sample sheets. Returns it as a RunResult."""
    folder.mkdir(parents=True)
    values = make_values(number, seed) if values is None else values
    data = {"path": "digits.zip", "resolution": EDGE, "use_labels": True}
    settings = {"random_seed": seed, "run_dir": str(folder), "training_set_kwargs": data, "loss_kwargs": {"pairing_weight": 0.05 * number}}
    (folder / "training_options.json").write_text(json.dumps(settings | (options or {})))
    (folder / "log.txt").write_text("Device:          cpu, batch 64, 64 at a time\n")
    for metric in ("prdc10k5_embedded", "fid10k_embedded"):
        for k in sorted({k for points in values.values() for k in points}):
            results = {figure: points[k] for figure, points in values.items() if figure.startswith(metric) and k in points}
            line = {"results": results, "metric": metric, "total_time": 2.5, "snapshot_pkl": f"network-snapshot-{k:06d}.safetensors"}
            line["protocol"] = PROTOCOL
            with open(folder / f"metric-{metric}.jsonl", "a") as handle:
                handle.write(json.dumps(line) + "\n")
    write_sheet(folder / "reals.png", 128)
    for k in kimg:
        write_sheet(folder / f"fakes{k:06d}.png", 10 + 60 * number + 7 * seed + k)
    protocols = dict.fromkeys(values, PROTOCOL)
    return RunResult(method, seed, folder, budget, setting, max(kimg, default=0), values, protocols, 100.0 + seed, max(kimg, default=0))


def write_runs(root, methods=("StyleGAN2", "Pairing-GAN"), seeds=3, budget="short", setting="noaug"):
    """Runs of several methods under several seeds, method by method."""
    return [
        write_run(root / f"{budget}-{setting}-{number}-seed{seed}" / "00000-digits", method, seed, number, budget=budget, setting=setting)
        for number, method in enumerate(methods)
        for seed in range(seeds)
    ]


def make_table(runs, name="table3", budget="short: 60 kimg", claims=(), paper=PAPER):
    """A table with a row per method of the runs."""
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = tuple(run for run in runs if run.method == method)
        ours = {}
        for column, figure in zip(COLUMNS, FIGURES):
            ends = [run.figures[figure][KIMG[-1]] for run in own]
            ours[column] = statistics.fmean(ends), statistics.stdev(ends) if len(ends) > 1 else float("nan")
        rows.append(TableRow(method, KIMG[-1], own, ours, dict(paper)))
    title, budget_name = "Table 3: CIFAR-10 without augmentation.", budget.partition(":")[0]
    return TableResult(name, title, budget_name, budget, "embedded", COLUMNS, tuple(rows), tuple(claims), "A note.")


def cells_of(path, kind):
    """The text of all cells of the tables of a class, row by row."""
    tables = re.findall(rf'<table class="{kind}">(.*?)</table>', path.read_text(encoding="utf-8"), re.DOTALL)
    rows = [row for table in tables for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)]
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


CLAIMS = (
    Verdict("C4", "Pairing raises coverage.", True, "coverage passes: +0.030 [0.020, 0.040]; FID is open: −0.2 [−0.9, 0.5]."),
    Verdict("C4b", "Mode seeking loses recall.", None, "no figures."),
    Verdict("C5", "With ADA nothing changes.", False, "recall is contradicted: +0.1 [0.08, 0.12]."),
)
