"""The files of a predicted study: BIDS derivatives, what is done already, and what the data set says of itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dmri_monai
from dmri_monai.inference.model import TrainedModel
from dmri_monai.inference.result import result_stem
from dmri_monai.inference.weights import digest_of
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.leftovers import finish_renames, unfinished
from dmri_monai.io.sidecars import BvecsChoice
from dmri_monai.io.writing import replacing
from dmri_monai.tasks.registry import find_task
from dmri_monai.transforms import LoadDWId

__all__ = ["is_done", "made_by", "meaning", "places_of", "relative_to", "sources_digest", "write_description"]

BIDS_VERSION = "1.10.0"
# how the maps are called: entities and suffix after those of the scan (BIDS derivatives, and BEP016 for diffusion
# models); a name has one `desc`, which may be the scan's own
NAMES = {
    "tissue": "{stem}_desc-{desc}tissue_dseg",
    "lesion": "{stem}_label-lesion{_desc}_mask",
    "crossings": "{stem}_model-dmrimonai{_desc}_param-fibrecount_dwimap",
    "orientation": "{stem}_model-dmrimonai{_desc}_param-direction_dwimap",
    "fod": "{stem}_model-dmrimonai{_desc}_param-fod_dwimap",
    "fractions": "{stem}_desc-{desc}tissue_probseg",
}
# task -> kind of a further file -> its name
DERIVED = {
    "fod": {
        "peaks": "{stem}_model-dmrimonai{_desc}_param-fodpeaks_dwimap",
        "npeaks": "{stem}_model-dmrimonai{_desc}_param-fodcount_dwimap",
    }
}
SPREAD = "{stem}_model-dmrimonai{_desc}_param-{task}spread_dwimap"
UNITS = {
    "tissue": "class numbers",
    "lesion": "0 or 1",
    "crossings": "number of fibre populations",
    "fod": "fraction of the voxel per steradian",
    "fractions": "fractions of the voxel",
}
DESCRIPTIONS = {
    "tissue": "Tissue of each voxel, as the file desc-tissue_dseg.tsv names it",
    "lesion": "Lesions of multiple sclerosis",
    "crossings": "Number of fibre populations in each voxel, 0 outside of white matter",
    "orientation": "Principal fibre direction in each voxel, NaN where there is none",
    "fod": "Fibre orientation density of white matter, for MRtrix3; its peaks and their number lie beside it",
    "fractions": "Volume fractions of white matter, grey matter and cerebrospinal fluid",
}
IGNORED = """# pages for people
*.html
# BEP016's maps of diffusion models, which the BIDS validator does not know yet
*_dwimap.nii.gz
*_dwimap.json
"""
README = """# Predictions by dmri_monai

Maps on the grid of each scan, predicted by neural networks from its diffusion measurements. `index.html` lists
them with what was noticed about the scans; the page of each subject shows them. The JSON file beside a map says from
which files and by which model it was made. Not for clinical use.

| map | holds |
|---|---|
| `*_desc-tissue_dseg` | class numbers, named in `desc-tissue_dseg.tsv` |
| `*_label-lesion_mask` | 1 in lesions |
| `*_model-dmrimonai_param-fibrecount_dwimap` | number of fibre populations |
| `*_model-dmrimonai_param-direction_dwimap` | x, y, z of the principal direction in the scanner's axes (RAS+) |
| `*_model-dmrimonai_param-fod_dwimap` | fibre orientation density, harmonics as MRtrix3 has them |
| `*_model-dmrimonai_param-fodpeaks_dwimap` | x, y, z of its peaks, largest first, in the scanner's axes (RAS+) |
| `*_model-dmrimonai_param-fodcount_dwimap` | number of its peaks |
| `*_desc-tissue_probseg` | volume fractions of white matter, grey matter, cerebrospinal fluid |
| `*_model-dmrimonai_param-<task>spread_dwimap` | spread of the predictions for turned copies of the scan |
"""


def relative_to(path: Path, source: Path) -> str:
    """The place of `path` in the folder `source`; its name where it lies elsewhere.

    What a link within `source` leads to (the store of git-annex, another disk) is not where a scan lies; `source`
    itself may be named in different ways.
    """
    place, root = Path(os.path.abspath(path)), source.resolve()
    for folder in (Path(os.path.abspath(source)), *place.parents):
        if folder.resolve() == root and place.is_relative_to(folder):
            return place.relative_to(folder).as_posix()
    return path.name


def places_of(path: Path, source: Path, out: Path, task: str) -> dict[str, Path]:
    """Where the files of one prediction go: the folder of the scan below `out`, under BIDS names."""
    folder = out / Path(relative_to(path, source)).parent
    whole, _, desc = result_stem(path).partition("_desc-")
    desc, _, rest = desc.partition("_")
    parts = {
        "stem": "_".join(filter(None, (whole, rest))),
        "desc": desc,
        "_desc": f"_desc-{desc}" if desc else "",
        "task": task,
    }
    stem, spread = NAMES[task].format(**parts), SPREAD.format(**parts)
    derived = {
        kind: folder / f"{name.format(**parts)}.nii.gz" for kind, name in DERIVED.get(task, {}).items()
    }
    return {
        **derived,
        "prediction": folder / f"{stem}.nii.gz",
        "sidecar": folder / f"{stem}.json",
        "uncertainty": folder / f"{spread}.nii.gz",
        "report": folder / f"{stem}.html",
    }


def made_by(weights: str) -> dict[str, Any]:
    """What every sidecar says of the model, in BIDS's words, by the file name of its weights."""
    return {"Model": {"Description": "neural network of dmri_monai", "Parameters": {"Weights": weights}}}


def meaning(task: str, scan: str) -> dict[str, Any]:
    """What a sidecar says of the prediction of `task`, in BIDS's words.

    scan: BIDS URI of the scan on whose grid it lies.
    """
    common = {"Description": DESCRIPTIONS[task], "Units": UNITS.get(task, "arbitrary")}
    if task == "tissue":
        return {**common, "SpatialReference": scan, "Manual": False}
    if task == "lesion":
        return {**common, "SpatialReference": scan, "Type": "Lesion"}
    if task == "fractions":
        return {**common, "SpatialReference": scan, "Manual": False}
    if task in ("crossings", "fod"):  # what a density's harmonics are, stands in its sidecar already
        return common
    encoding = {"Type": "unit3vector", "EncodingAxis": 3, "Reference": "xyz", "AntipodalSymmetry": True}
    return {**common, "OrientationEncoding": encoding}


def is_done(places: Mapping[str, Path], scan: Path, model: TrainedModel, options: Mapping[str, Any]) -> bool:
    """Whether the prediction of `scan` by this model, or the one it has for blocks, is there, whole.

    options: under which it is made, as its sidecar has them; `bvecs` among them.
    """
    if not places["sidecar"].parent.is_dir():
        return False
    finish_renames(places["sidecar"].parent)
    if not (places["prediction"].is_file() and places["sidecar"].is_file()) or unfinished(places["sidecar"]):
        return False
    try:
        record = read_json(places["sidecar"])
    except ValueError:
        return False
    ours = any({name: record.get(name) for name in known} == known for known in model.identities)
    if not ours or record.get("Options") != options:
        return False
    return record.get("SourcesSHA256") == sources_digest(scan, options["bvecs"])


def sources_digest(scan: Path, bvecs: BvecsChoice) -> str:
    """SHA-256 of the digests of everything `scan` is read from: image, gradient table by `bvecs`, JSON sidecars."""
    digests = [digest_of(path) for path in LoadDWId("image", bvecs=bvecs).files({"image": scan})]
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()


def write_description(out: Path, source: Path) -> None:
    """What stands at the root of the derivatives: `dataset_description.json`, README, class names, `.bidsignore`.

    Files of these names that are there already stay, but for the description; ValueError where another tool's data set
    lies in the folder.
    """
    path = out / "dataset_description.json"
    if path.is_file():
        makers = read_json(path).get("GeneratedBy")
        makers = makers if isinstance(makers, list) else []
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
    names = {"index": "name", "0": "background"}
    names |= {str(i): name for i, name in enumerate(find_task("tissue").class_names, start=1)}
    texts = {
        path: json.dumps(content, indent=4, ensure_ascii=False) + "\n",
        out / "README.md": README,
        out / ".bidsignore": IGNORED,
        out / "desc-tissue_dseg.tsv": "".join(f"{index}\t{name}\n" for index, name in names.items()),
    }
    new = [target for target in texts if target == path or not target.exists()]
    with replacing(*new) as temporary:
        for aside, target in zip(temporary, new, strict=True):
            aside.write_text(texts[target], encoding="utf-8")
