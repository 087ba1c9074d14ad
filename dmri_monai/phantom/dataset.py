"""Phantom subjects as a BIDS data set with ground truth as derivatives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from tqdm.auto import tqdm

import dmri_monai
from dmri_monai.artifacts.engine import load_preset, preset_files
from dmri_monai.gradients import GradientTable
from dmri_monai.io import write_dwi, write_nifti
from dmri_monai.io.writing import replacing
from dmri_monai.phantom.fields import plain_seed
from dmri_monai.phantom.microstructure import PEAK_RULE
from dmri_monai.phantom.mni.atlas import tracts
from dmri_monai.phantom.mni.truth import MAPS
from dmri_monai.phantom.scan_plan import (
    SHAPES,
    SNR_RANGE,
    SPACING_MM,
    Acquisition,
    AnatomyName,
    SubjectOptions,
    anatomy_name,
    plan_scanner,
    scanner_protocol,
)
from dmri_monai.phantom.subject import Subject, make_subject

__all__ = ["write_dataset", "write_subject"]

BIDS_VERSION = "1.10.0"
TRUTH = Path("derivatives") / "ground-truth"
RECIPE = Path("code") / "phantom.json"  # what the folder was made from; BIDS leaves `code/` to the author
DSEG = (
    ("index", "name", "abbreviation"),
    (0, "Background", "BG"),
    (1, "White Matter", "WM"),
    (2, "Grey Matter", "GM"),
    (3, "Cerebrospinal Fluid", "CSF"),
)
TITLES: dict[str, str] = {
    "procedural": "Procedural diffusion MRI phantom",
    "mni152": "Diffusion MRI phantom of the MNI152 template",
}
README = """{title}

Simulated heads with known truth, written by `dmri-monai phantom`; no person was scanned. {recipe} holds the arguments,
the sidecars of the scans what was drawn for each, {truth} the truth: tissue, lesions, fibre peaks.
"""
PARTICIPANTS = {
    "snr": {"Description": "Mean white-matter b0 signal over the standard deviation of the noise"},
    "n_volumes": {"Description": "Volumes of the diffusion scan, b0 included"},
}
TRUTH_SIDECARS: dict[str, dict[str, object]] = {
    "dseg": {"Description": "Tissue of the largest volume fraction; lesions count as white matter"},
    "lesion": {"Description": "White-matter lesions", "Type": "Lesion"},
    "desc-brain_mask": {"Description": "White matter, grey matter and cerebrospinal fluid", "Type": "Brain"},
    "npeaks": {"Description": "Number of fibre peaks, 0 to 3", "PeakRule": PEAK_RULE},
    "peaks": {
        "Description": "Fibre peaks, x y z per peak, largest first; NaN where there is none",
        "ReferenceFrame": "world RAS+",
        "Amplitude": "vector length is the fibre population's fraction of the voxel volume",
        "PeakRule": PEAK_RULE,
    },
}


def write_dataset(
    out: str | Path,
    *,
    subjects: int,
    seed: int = 0,
    progress: bool = True,
    **options: Unpack[SubjectOptions],
) -> Path:
    """Write `subjects` phantom subjects sub-01 ... to the BIDS folder `out` and return it.

    The same arguments give the same bytes; subject i depends on (`seed`, i) alone, so a data set can be extended later.
    A folder made by the same arguments is completed: subjects that are already whole are left as they are.
    Raises FileExistsError for any other folder that is not empty.  `options`: those of :func:`make_subject`.
    """
    if subjects < 1:
        raise ValueError(f"subjects: {subjects}, expected at least 1")
    out = Path(out)
    anatomy = anatomy_name(options)
    plan_scanner((seed, 1), options)  # refuses impossible options before anything is written
    _claim(out, _recipe(seed, options))
    _write_json(out / "dataset_description.json", _description(TITLES[anatomy], "raw"))
    _write_json(out / TRUTH / "dataset_description.json", _description("Phantom ground truth", "derivative"))
    _write_table(out / TRUTH / "dseg.tsv", DSEG)
    for i in tqdm(range(1, subjects + 1), desc="phantom", unit="subject", disable=not progress):
        if all((out / name).exists() for name in _files(_label(i), anatomy)):
            continue
        write_subject(out, _label(i), make_subject((seed, i), **options))
    if anatomy == "mni152":
        _write_table(out / TRUTH / "bundles.tsv", [("index", "name"), *enumerate(t.name for t in tracts())])
    _write_participants(out)
    _write_text(out / "README", README.format(title=TITLES[anatomy], recipe=RECIPE, truth=TRUTH))
    return out


def write_subject(out: str | Path, label: str, subject: Subject) -> None:
    """Write one subject as `label` ("sub-01") into the BIDS folder `out`; its DWI sidecar comes last."""
    out = Path(out)
    dwi = out / label / "dwi" / f"{label}_dwi.nii.gz"
    truth = out / TRUTH / label / "dwi"
    volumes = {
        "dseg": subject.dseg,
        "lesion": subject.lesion,
        "desc-brain_mask": subject.brain_mask,
        "npeaks": subject.npeaks,
        "peaks": subject.peaks_world,
    }
    sidecars = TRUTH_SIDECARS | {name: {"Description": text} for name, text in MAPS.items()}
    for name, volume in (volumes | subject.maps).items():
        write_nifti(truth / f"{label}_{name}.nii.gz", volume, subject.affine)
        _write_json(truth / f"{label}_{name}.json", sidecars[name])
    write_dwi(dwi, subject.image, subject.table)
    _write_json(out / label / "dwi" / f"{label}_dwi.json", _acquisition(subject))


def _label(number: int) -> str:
    return f"sub-{number:02d}"


def _files(label: str, anatomy: AnatomyName) -> list[Path]:
    """Every file of one subject, relative to the data set."""
    raw = [Path(label) / "dwi" / f"{label}_dwi{suffix}" for suffix in (".nii.gz", ".bval", ".bvec", ".json")]
    truth = TRUTH / label / "dwi"
    names = [*TRUTH_SIDECARS, *(MAPS if anatomy == "mni152" else ())]
    return raw + [truth / f"{label}_{name}{suffix}" for name in names for suffix in (".nii.gz", ".json")]


def _recipe(seed: int, options: SubjectOptions) -> dict[str, object]:
    """What the files depend on, with the defaults filled in; the device is not part of it."""
    anatomy, acquisition = anatomy_name(options), options.get("acquisition") or Acquisition()
    wide = acquisition.randomise
    scheme = options.get("scheme") or (None if wide else "random")
    if isinstance(scheme, GradientTable):
        scheme = {"bvals": scheme.bvals.tolist(), "bvecs_world": scheme.bvecs.tolist()}  # type: ignore[assignment]
    recipe: dict[str, object] = {
        "version": dmri_monai.__version__,
        "seed": plain_seed(seed),
        "anatomy": anatomy,
        "scheme": scheme,
    }
    for name, default in (("shape", SHAPES[anatomy]), ("spacing_mm", SPACING_MM), ("snr", SNR_RANGE)):
        given = options.get(name)
        recipe[name] = (None if wide else default) if given is None else np.asarray(given).tolist()
    if acquisition != Acquisition():
        recipe["acquisition"] = asdict(acquisition)
        if (content := _preset_content(acquisition.artifacts)) is not None:
            recipe["artifacts"] = content
    if (affine := options.get("affine")) is not None:
        recipe["affine"] = torch.as_tensor(affine).tolist()
    plain: dict[str, object] = json.loads(json.dumps(recipe))
    return plain


def _preset_content(name: str | None) -> dict[str, object] | None:
    """Artifacts of a preset that is a JSON file, which may change while its name stays; None for a shipped one."""
    if name is None or name in preset_files():
        return None
    return {artifact.name: asdict(artifact) for artifact in load_preset(name).artifacts}


def _claim(out: Path, recipe: Mapping[str, object]) -> None:
    """Make `out` ours: it is empty or absent, or holds a data set of the same recipe, or none of its subjects."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"not a folder: {out}")
    if out.exists() and any(out.iterdir()):
        path = out / RECIPE
        if not path.exists():
            raise FileExistsError(f"folder is not empty and holds no phantom ({RECIPE} is missing): {out}")
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(key for key in recipe | found if recipe.get(key) != found.get(key))
        begun = any(out.glob("sub-*")) or any((out / TRUTH).glob("sub-*"))
        if differing and begun:  # else a run that failed on its first subject
            key = differing[0]
            raise FileExistsError(
                f"folder holds a phantom of {key} = {found.get(key)}, asked for {recipe.get(key)}: {out}"
            )
    _write_json(out / RECIPE, recipe)


def _description(name: str, kind: str) -> dict[str, object]:
    generator = {"Name": "dmri_monai.phantom", "Version": dmri_monai.__version__}
    description = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": kind, "License": "CC0"}
    return description | {"GeneratedBy": [generator]}


def _acquisition(subject: Subject) -> dict[str, object]:
    """DWI sidecar: a plausible echo-planar protocol in BIDS terms, and what the phantom drew."""
    contrast: Mapping[str, float] = subject.parameters["Contrast"]  # type: ignore[assignment]
    repetition = contrast["tr_ms"] / 1000
    seed = subject.parameters["Seed"]
    protocol = scanner_protocol(seed, subject.image.shape[-1], repetition)  # type: ignore[arg-type]
    return {
        "PhaseEncodingDirection": protocol["PhaseEncodingDirection"],
        "TotalReadoutTime": protocol["TotalReadoutTime"],
        "EchoTime": contrast["te_ms"] / 1000,
        "RepetitionTime": repetition,
        "SliceEncodingDirection": protocol["SliceEncodingDirection"],
        "SliceTiming": protocol["SliceTiming"],
        "Phantom": dict(subject.parameters),
    }


def _write_participants(out: Path) -> None:
    """participants.tsv of every subject in the folder, from the sidecars."""
    rows: list[tuple[object, ...]] = [("participant_id", "snr", "n_volumes")]
    for path in sorted(out.glob("sub-*/dwi/sub-*_dwi.json"), key=lambda p: (len(p.name), p.name)):
        label = path.name.removesuffix("_dwi.json")
        n_volumes = len(path.with_suffix(".bval").read_text(encoding="utf-8").split())
        rows.append(
            (label, f"{json.loads(path.read_text(encoding='utf-8'))['Phantom']['SNR']:.2f}", n_volumes)
        )
    _write_table(out / "participants.tsv", rows)
    _write_json(out / "participants.json", PARTICIPANTS)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    _write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8")
