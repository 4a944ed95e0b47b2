"""Features of images in a file of one's own: saved once, compared with anything later, here or elsewhere.

A safetensors file holds the rows, labels where the images have some, and in its metadata which detector made them of what. Unlike an entry of
the cache it cannot be rebuilt, so a damaged one is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import safetensors
import torch

from dnnlib import UserError, atomic_path
from dnnlib.json_files import parse_json
from metrics.feature_cache import tensors_checksum
from torch_utils.checkpoint import read_tensors, write_tensors

KIND, FORMAT = "features", 1
SUFFIX = ".safetensors"


@dataclasses.dataclass
class FeatureFile:
    """Features with their origin.

    Attributes:
        path: the file.
        rows: float32 [N, D].
        labels: float32 [N, label_dim] or None.
        detector: name; digest: SHA-256 of its weights; resize: how images reached its input size.
        source: fingerprint of the images.
        image_size: (width, height) of the images in pixels.
    """

    path: pathlib.Path
    rows: torch.Tensor
    labels: torch.Tensor | None
    detector: str
    digest: str
    resize: str
    source: str
    image_size: tuple[int, int]


def check_feature_path(path: pathlib.Path) -> None:
    """Raises UserError if no feature file can be written there: before hours of work, not after."""
    if path.suffix != SUFFIX:
        raise UserError(f"--save-features={path} must end in {SUFFIX}, the format of feature files")
    if not (os.path.isdir(path.parent) and os.access(path.parent, os.W_OK)):
        raise UserError(f"--save-features={path} cannot be written: {path.parent} is no folder that can be written to; name one that is")


def save_features(file: FeatureFile) -> None:
    """Writes a feature file, whole or not at all. Raises UserError where that cannot be, as `check_feature_path`."""
    check_feature_path(file.path)
    tensors = {"rows": file.rows.contiguous()} | ({} if file.labels is None else {"labels": file.labels.contiguous()})
    facts = {"detector": file.detector, "digest": file.digest, "resize": file.resize, "source": file.source, "image_size": file.image_size}
    facts |= {"kind": KIND, "format": FORMAT, "count": len(file.rows), "checksum": tensors_checksum(tensors)}
    try:
        with atomic_path(file.path) as temporary:
            write_tensors(temporary, tensors, metadata={"features": json.dumps(facts)})
    except safetensors.SafetensorError as error:  # which is how it reports a missing folder and a full disk
        raise UserError(f"cannot write {file.path}: {error}") from error


def is_feature_file(path: str | os.PathLike) -> bool:
    """Whether this is a safetensors file that says it holds features; a file that cannot be read is none."""
    try:
        return _facts(path).get("kind") == KIND
    except (OSError, safetensors.SafetensorError, ValueError):
        return False


def load_features(path: str | os.PathLike) -> FeatureFile:
    """Reads a feature file and checks it against its own record.

    Raises:
        UserError: no feature file, one of another version, or a damaged one.
    """
    path = pathlib.Path(path)
    try:
        facts = _facts(path)
        if facts.get("kind") != KIND or facts.get("format") != FORMAT:
            raise UserError(f"{path} is no feature file of this version; make it with calc_metrics.py --save-features")
        with safetensors.safe_open(path, framework="pt") as handle:
            tensors = read_tensors(handle)
        if facts["checksum"] != tensors_checksum(tensors) or len(tensors["rows"]) != facts["count"]:
            raise UserError(f"{path} is damaged: its features do not match their checksum; make it again with --save-features")
        _check_content(tensors["rows"], tensors.get("labels"), facts)
        origin = {key: facts[key] for key in ("detector", "digest", "resize", "source")}
        return FeatureFile(path, tensors["rows"], tensors.get("labels"), **origin, image_size=tuple(facts["image_size"]))
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a feature file ({' '.join(str(error).split())[:120]}); make it again") from error


def _check_content(rows: torch.Tensor, labels: torch.Tensor | None, facts: dict) -> None:
    """Raises ValueError unless this is what `save_features` writes."""
    if rows.dtype != torch.float32 or rows.ndim != 2 or not rows.numel() or not bool(rows.isfinite().all()):
        raise ValueError("rows that are no finite float32 matrix")
    if labels is not None and (labels.dtype != torch.float32 or labels.ndim != 2 or len(labels) != len(rows)):
        raise ValueError("labels that are no float32 matrix of as many rows")
    if not all(isinstance(facts[key], str) for key in ("detector", "digest", "resize", "source")):
        raise ValueError("an origin that is no text")
    size = facts["image_size"]
    if not isinstance(size, list) or len(size) != 2 or not all(type(edge) is int and edge > 0 for edge in size):
        raise ValueError("an image size that is no width and height")


def _facts(path: str | os.PathLike) -> dict:
    with safetensors.safe_open(path, framework="pt") as handle:
        facts = parse_json((handle.metadata() or {}).get("features", "{}"))
    return facts if isinstance(facts, dict) else {}
