"""Runs experiments: trains what is missing, judges it, draws it, and writes DIR/NAME.json, DIR/NAME.md and the pictures."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from dnnlib import UserError, atomic_write_text
from dnnlib.format import format_time
from experiments.paper import pictures
from experiments.paper.checks import Rows
from experiments.paper.results import build_result, read_result, result_path, versions, write_result
from experiments.paper.tables import page
from experiments.paper.toy_experiments import Experiment
from experiments.toy import runner
from experiments.toy.methods import find_method
from experiments.toy.parts import Part
from experiments.toy.studies import find_study

VARIABLE = ("command", "versions", "seeds", "reference")  # parts of a protocol that do not change what a seed's figure is


def run_experiments(
    experiments: Sequence[Experiment],
    num_seeds: int,
    out: pathlib.Path,
    *,
    command: str,
    again: bool = False,
    workers: int | None = None,
    progress: Callable[[str], None] = print,
) -> None:
    """Runs experiments one after the other under the seeds 0 to num_seeds - 1; finished ones are left alone.

    Args:
        experiments: which ones.
        num_seeds: 1 or more.
        out: an existing folder.
        command: the command line, for the record.
        again: train everything anew.
        workers: processes; default is one per core.
        progress: told what happens.

    Raises:
        UserError: see `is_finished` and `runner.run_parts`; nothing is trained before all results in `out` are found to fit.
    """
    seeds = list(range(num_seeds))
    waiting = []
    for experiment in experiments:
        if not again and is_finished(experiment, seeds, out):
            progress(f"{experiment.name}: finished already, in {result_path(out, experiment.name)}; --again runs it anew")
        else:
            waiting.append(experiment)
    renewed: set[tuple[str, str]] = set()
    for experiment in waiting:
        start = time.time()
        progress(f"{experiment.name}: {experiment.title} {len(experiment.methods)} methods, seeds 0 to {num_seeds - 1}")
        if again:
            _renew(experiment, seeds, out, renewed, workers, progress)
        parts = runner.run_parts(find_study(experiment.study), experiment.methods, seeds, out, workers=workers, progress=progress)
        result = _publish(experiment, parts, seeds, out, command)
        progress(f"{experiment.name}: {verdicts(result)}written to {result_path(out, experiment.name)} ({format_time(time.time() - start)})")


def is_finished(experiment: Experiment, seeds: Sequence[int], out: pathlib.Path) -> bool:
    """Whether `out` holds the experiment's result for these seeds.

    Raises:
        UserError: it holds one made with other settings, one of more seeds, or a damaged one.
    """
    path = result_path(out, experiment.name)
    if not path.exists():
        return False
    result = read_result(path)
    found, wanted = _fixed(result["protocol"]), _fixed(make_protocol(experiment, seeds, ""))
    shared = found["methods"].keys() & wanted["methods"].keys()
    for protocol in (found, wanted):  # a method more or less changes no other method's figures
        protocol["methods"] = {name: terms for name, terms in protocol["methods"].items() if name in shared}
    if changed := runner.difference(found, wanted):
        raise UserError(f"{path} was made with other settings ({changed}); give another --out, or --again to replace it")
    old_seeds = result["protocol"]["seeds"]
    if len(old_seeds) > len(seeds):
        raise UserError(f"{path} holds {len(old_seeds)} seeds, more than --seeds={len(seeds)}; give another --out, or --again to replace it")
    return old_seeds == list(seeds) and list(result["rows"]) == list(experiment.methods)


def make_protocol(experiment: Experiment, seeds: Sequence[int], command: str) -> dict[str, Any]:
    """How an experiment's figures are made, as JSON holds it."""
    study = find_study(experiment.study)
    described = {name: runner.protocol(study, find_method(name)) for name in experiment.methods}
    shared = dict(described[experiment.methods[0]])
    del shared["method"]
    return {
        "study": study.name,
        **shared,
        "methods": {name: protocol["method"] for name, protocol in described.items()},
        "seeds": list(seeds),
        "reference": experiment.source,
        "command": command,
        "versions": versions(),
    }


def rows_of_parts(parts: dict[str, list[Part]], seeds: Sequence[int]) -> Rows:
    """Method -> metric -> values in the order of `seeds`.

    Raises:
        UserError: parts that were measured by different versions of the code.
    """
    rows = {}
    names = next(iter(parts.values()))[0].measures.keys()
    for method, own in parts.items():
        if [part.seed for part in own] != list(seeds):
            raise ValueError(f"parts of {method} are of seeds {[part.seed for part in own]}, not {list(seeds)}")
        for part in own:
            if part.measures.keys() != names:
                odd = sorted(part.measures.keys() ^ names)
                raise UserError(f"seed {part.seed} of {method} was measured by another version ({', '.join(odd)}); --again makes all anew")
        rows[method] = {name: [float(part.measures[name]) for part in own] for name in names}
    return rows


def verdicts(result: dict[str, Any]) -> str:
    """Verdicts and aims of a result as the beginning of a sentence; empty without any."""
    texts = [f"{name} {'holds' if claim['holds'] else 'does not hold'}" for name, claim in result["claims"].items()]
    if result["aims"]:
        texts.append(f"{sum(aim['met'] for aim in result['aims'])} of {len(result['aims'])} aims met")
    return ", ".join(texts) + "; " if texts else ""


def _fixed(protocol: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key not in VARIABLE}


def _renew(
    experiment: Experiment,
    seeds: Sequence[int],
    out: pathlib.Path,
    renewed: set[tuple[str, str]],
    workers: int | None,
    progress: Callable[[str], None],
) -> None:
    """Trains the experiment's methods anew, unless another experiment of this run has just done so."""
    stale = [method for method in experiment.methods if (experiment.study, method) not in renewed]
    if stale:
        runner.run_parts(find_study(experiment.study), stale, seeds, out, again=True, workers=workers, progress=progress)
    renewed.update((experiment.study, method) for method in stale)


def _publish(experiment: Experiment, parts: dict[str, list[Part]], seeds: Sequence[int], out: pathlib.Path, command: str) -> dict[str, Any]:
    """Writes pictures, page and result. The result goes last: where it is, everything is."""
    result = build_result(experiment, rows_of_parts(parts, seeds), make_protocol(experiment, seeds, command))
    drawn = pictures.draw(experiment, parts, out)
    atomic_write_text(out / f"{experiment.name}.md", page(experiment, result, [path.relative_to(out).as_posix() for path in drawn]))
    write_result(result, result_path(out, experiment.name))
    return result
