"""Single flipped bits and truncations of every kind of file: refused by name, or without an effect on what is read."""

from __future__ import annotations

import copy
import json
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityd

from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import read_weights, read_whole
from dmri_monai.integrations.torchscript import export_model, load_exported
from dmri_monai.integrations.tracking import run_record
from dmri_monai.io import read_dwi
from dmri_monai.io.checksums import with_checksum
from dmri_monai.training.caching import DiskCache
from dmri_monai.transforms import LoadDWId
from tests.faults.trainings import train

FLIPS, CUTS = 100, 20


def cached(path: Path) -> Any:
    """The item of the only entry of the cache in `path`'s folder; a damaged one is made anew."""
    scan = next(path.parent.parent.glob("*_dwi.nii.gz"))
    return DiskCache(path.parent, Compose([LoadDWId("image"), ScaleIntensityd("image")]))(
        {"image": str(scan)}
    )


READERS: dict[str, Callable[[Path], Any]] = {
    "model.pt": read_weights,
    "last.pt": read_whole,
    "model.json": lambda path: ModelSpec.load(path).model_dump(),
    "model.ts": lambda path: load_exported(path).state_dict(),
    "mlflow_run.json": lambda path: run_record(path.parent),
    "cache entry": cached,
    "scan.nii.gz": lambda path: [read_dwi(path)[0].as_tensor(), read_dwi(path)[0].affine],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory, scan, checkpoint) -> dict[str, Path]:
    """One whole file of each kind, with what belongs to it beside it."""
    home = tmp_path_factory.mktemp("files")
    train(home / "training", epochs=1)
    (home / "training" / "mlflow_run.json").write_text(
        json.dumps(with_checksum({"run_id": "0123456789abcdef", "tracking_uri": "sqlite:///runs/mlruns.db"})),
        encoding="utf-8",
    )
    (home / "exported").mkdir()
    export_model(checkpoint, home / "exported" / "model.ts")
    shutil.copytree(scan.parent, home / "scan")
    image = next((home / "scan").glob("*_dwi.nii.gz"))
    cache = DiskCache(home / "scan" / "cache", Compose([LoadDWId("image"), ScaleIntensityd("image")]))
    cache({"image": str(image)})
    return {
        "model.pt": home / "training" / "model.pt",
        "last.pt": home / "training" / "last.pt",
        "model.json": home / "training" / "model.json",
        "model.ts": home / "exported" / "model.ts",
        "mlflow_run.json": home / "training" / "mlflow_run.json",
        "cache entry": next((home / "scan" / "cache").glob("*.pt")),
        "scan.nii.gz": image,
    }


def outcome(path: Path, read: Callable[[Path], Any], whole: Any) -> str:
    """What became of a damaged file: "right" where it is refused by its name, or read as the whole one is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path)
    except (ValueError, OSError) as error:
        return "right" if path.name in str(error) else "wrong"
    return "right" if equal(found, whole) else "wrong"


def equal(one: Any, other: Any) -> bool:
    """Whether two contents are the same, bit for bit in their tensors."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        plain, whole = (np.asarray(value.as_subclass(torch.Tensor)) for value in (one, other))
        return (
            plain.dtype == whole.dtype and plain.shape == whole.shape and plain.tobytes() == whole.tobytes()
        )
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(np.all(one == other))


@pytest.mark.parametrize("kind", READERS)
def test_no_single_flipped_bit_is_taken_for_the_file(files, count, kind):
    path, read, draw = files[kind], READERS[kind], random.Random(kind)
    content, whole = path.read_bytes(), copy.deepcopy(read(path))  # not a map of the file
    wrong = []
    for _ in range(FLIPS):
        place = draw.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = outcome(path, read, whole)
        count(f"flipped bits: {kind}", found)
        wrong += [place] if found != "right" else []
    path.write_bytes(content)
    assert not wrong


@pytest.mark.parametrize("kind", READERS)
def test_no_truncated_file_is_taken_for_the_whole_one(files, count, kind):
    path, read, draw = files[kind], READERS[kind], random.Random(kind)
    content, whole = path.read_bytes(), copy.deepcopy(read(path))  # not a map of the file
    wrong = []
    for size in [0, *(draw.randrange(1, len(content)) for _ in range(CUTS - 1))]:
        path.write_bytes(content[:size])
        found = outcome(path, read, whole)
        count(f"truncations: {kind}", found)
        wrong += [size] if found != "right" else []
    path.write_bytes(content)
    assert not wrong


def test_a_reader_that_compares_nothing_would_be_found_out(files, tmp_path):
    """The control: torch.load alone reads other weights from a file with a flipped bit."""
    content = files["model.pt"].read_bytes()
    place = content.index(torch.load(files["model.pt"])["weight"].numpy().tobytes()[:16])
    damaged = tmp_path / "model.pt"
    damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    whole = torch.load(files["model.pt"])
    assert outcome(damaged, torch.load, whole) == "wrong"
    assert outcome(damaged, read_weights, whole) == "right"
