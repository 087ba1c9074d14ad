"""The files of a predicted study: BIDS derivatives, what is done already, and what the data set says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dmri_monai
from dmri_monai.inference.model import TrainedModel
from dmri_monai.inference.result import result_stem
from dmri_monai.inference.weights import digest_of
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.writing import replacing
from dmri_monai.transforms import LoadDWId

__all__ = ["is_done", "meaning", "places_of", "relative_to", "sources_digest", "write_description"]

BIDS_VERSION = "1.10.0"
# how the maps are called: entities and suffix after those of the scan (BIDS derivatives, and BEP016 for diffusion
# models)
NAMES = {
    "tissue": "desc-tissue_dseg",
    "lesion": "label-lesion_mask",
    "crossings": "model-dmrimonai_param-fibrecount_dwimap",
    "orientation": "model-dmrimonai_param-direction_dwimap",
    "fod": "model-dmrimonai_param-fod_dwimap",
    "fractions": "desc-tissue_probseg",
}
DERIVED = {
    "fod": {"peaks": "fodpeaks", "npeaks": "fodcount"}
}  # task -> kind of file -> parameter in its name
UNITS = {
    "tissue": "class numbers",
    "lesion": "0 or 1",
    "crossings": "number of fibre populations",
    "fod": "fraction of the voxel per steradian",
    "fractions": "fractions of the voxel",
}


def relative_to(path: Path, source: Path) -> str:
    try:
        return path.resolve().relative_to(source.resolve()).as_posix()
    except ValueError:
        return path.name


def places_of(path: Path, source: Path, out: Path, task: str) -> dict[str, Path]:
    """Where the files of one prediction go: the folder of the scan below `out`, under BIDS names."""
    folder = out / Path(relative_to(path, source)).parent
    stem = f"{result_stem(path)}_{NAMES[task]}"
    model = f"{result_stem(path)}_model-dmrimonai_param"
    derived = {kind: folder / f"{model}-{name}_dwimap.nii.gz" for kind, name in DERIVED.get(task, {}).items()}
    return {
        **derived,
        "prediction": folder / f"{stem}.nii.gz",
        "sidecar": folder / f"{stem}.json",
        "uncertainty": folder / f"{model}-{task}spread_dwimap.nii.gz",
        "report": folder / f"{stem}.html",
    }


def meaning(task: str) -> dict[str, Any]:
    if task in UNITS:
        return {"Units": UNITS[task]}
    return {"Units": "arbitrary", "OrientationEncoding": {"Type": "3vector", "Reference": "scanner (RAS+)"}}


def is_done(places: Mapping[str, Path], scan: Path, model: TrainedModel) -> bool:
    """Whether the prediction of `scan` by these weights is there, whole."""
    if not (places["prediction"].is_file() and places["sidecar"].is_file()):
        return False
    try:
        record = read_json(places["sidecar"])
    except ValueError:
        return False
    weights = model.spec.sha256 or digest_of(model.weights)
    return record.get("ModelSHA256") == weights and record.get("SourcesSHA256") == sources_digest(scan)


def sources_digest(scan: Path) -> str:
    """SHA-256 of the digests of everything `scan` is read from: image, gradient table, JSON sidecars."""
    digests = [digest_of(path) for path in LoadDWId("image").files({"image": scan})]
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()


def write_description(out: Path, source: Path) -> None:
    """`dataset_description.json` of the derivatives; ValueError where another tool's data set lies in the folder."""
    path = out / "dataset_description.json"
    if path.is_file():
        makers = read_json(path).get("GeneratedBy") or []
        if not any(isinstance(m, dict) and m.get("Name") == "dmri_monai" for m in makers):
            raise ValueError(f"{path} was not written by dmri_monai: choose a folder of its own")
    content = {
        "Name": f"Predictions of {source.name} by dmri_monai",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "dmri_monai", "Version": dmri_monai.__version__}],
        "SourceDatasets": [{"URL": source.resolve().as_uri()}],
        "DatasetLinks": {"raw": source.resolve().as_uri()},
    }
    with replacing(path) as (temporary,):
        temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
