"""From one scan to its prediction in one call: `dmri_monai.predict` and `dmri-monai predict`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from torch import Tensor

import dmri_monai
from dmri_monai.check import ScanCheck, check_image
from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi, read_nifti, write_dwi
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.writing import replacing
from dmri_monai.tasks.tasks import task as find_task
from dmri_monai.training.checkpoint import settings_path

__all__ = [
    "Prediction",
    "bundle_folder",
    "config_settings",
    "first_cause",
    "out_of_range",
    "predict",
    "settings_of",
]

PACKAGE = Path(__file__).parent
# A wheel carries the bundle inside the package; in a checkout it stands beside it.
FOLDERS = (PACKAGE / "bundle", PACKAGE.parent / "bundle")
MARGIN = 0.1  # a scan may lie this far outside of the training range before it is worth a warning
# a checkpoint's name of a setting -> the name of the config's key
KEYS = {"options": "network_options", "tolerance": "shell_tolerance"}
SETTINGS = (
    "task",
    "architecture",
    "size",
    "options",
    "shells",
    "l_max",
    "tolerance",
    "missing",
    "too_few",
    "order_scale",
    "n_directions",
    "spacing_mm",
)
NEEDED = ("task", "architecture", "shells", "tolerance", "missing")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one scan.

    image: on the scan's grid: class numbers (1, X, Y, Z), or peaks (3n, X, Y, Z), x y z per peak in RAS+ world.
    class_names: of the numbers from 1 on; empty for directions.
    uncertainty: (1, X, Y, Z), or None without an ensemble.
    warnings: what about the scan makes the prediction doubtful.
    provenance: hashes of model and gradient table, versions; also in the JSON sidecar.
    files: what was written, by kind; empty when no output folder was asked for.
    """

    image: MetaTensor
    class_names: tuple[str, ...]
    uncertainty: MetaTensor | None
    warnings: tuple[str, ...]
    provenance: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)


def predict(
    image: str | os.PathLike[str] | Any,
    bvals: Any = None,
    bvecs: Any = None,
    *,
    affine: Any = None,
    task: str = "tissue",
    checkpoint: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
    ensemble: str | None = None,
) -> Prediction:
    """Run a trained model on one scan.

    image: a DWI file with its sidecars; or an array (N, X, Y, Z) of raw signal with `bvals` (N,) in s/mm², `bvecs`
        (N, 3) in the world frame (RAS+) and `affine` (4, 4), which a MetaTensor brings along.
    task: which released model; with `checkpoint`, what that one was trained for.
    output_dir: where maps, JSON sidecar and report.html are written; None writes nothing that stays.
    ensemble: "rotations" or "flips": average over turned copies of the scan, which also gives an uncertainty.

    The scan is checked first (`dmri_monai.check`) and compared with what the model was trained on; what looks wrong
    is in `warnings`, never an error.  Raises ValueError or OSError for a scan or checkpoint that cannot be used.
    """
    find_task(task)
    weights = _weights(task, checkpoint)
    settings = settings_of(weights)
    with tempfile.TemporaryDirectory(prefix="dmri_monai-") as temporary:
        scan = _scan_file(image, bvals, bvecs, affine, Path(temporary))
        out = Path(temporary, "out") if output_dir is None else Path(output_dir)
        warnings, provenance = _examine(scan, weights, settings)
        options = {"device": device, "ensemble": ensemble}
        _run(scan, weights, settings, out, warnings, provenance, {k: v for k, v in options.items() if v})
        files = _files(scan, str(settings["task"]), out)
        content = {"Task": settings["task"], "Warnings": list(warnings), **provenance}
        with replacing(files["sidecar"]) as (aside,):
            aside.write_text(json.dumps(content, indent=4) + "\n")
        return Prediction(
            image=read_nifti(files["prediction"]),
            class_names=find_task(settings["task"]).class_names,
            uncertainty=read_nifti(files["uncertainty"]) if files["uncertainty"].is_file() else None,
            warnings=warnings,
            provenance=provenance,
            files={} if output_dir is None else {k: p for k, p in files.items() if p.is_file()},
        )


def bundle_folder() -> Path:
    """The bundle that came with the package; FileNotFoundError when it is missing."""
    for folder in FOLDERS:
        if (folder / "configs" / "inference.json").is_file():
            return folder
    raise FileNotFoundError(f"no bundle in {' or '.join(map(str, FOLDERS))}")


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """The settings that training wrote beside a checkpoint.

    FileNotFoundError naming both files without them; ValueError for a file that holds none, or no task: a pretrained
    model has none before it is fine-tuned.
    """
    record = settings_path(checkpoint)
    for path in (checkpoint, record):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; a checkpoint needs its settings beside it")
    try:
        settings: dict[str, Any] = json.loads(record.read_text())
    except ValueError as error:
        raise ValueError(f"{record} is not the settings of a model: {error}") from error
    missing = [name for name in NEEDED if name not in settings]
    if missing:
        raise ValueError(f"{record} is not the settings of a model trained for a task: it has no {missing}")
    return settings


def config_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the bundle's configs have to say for a checkpoint with these `settings`: key -> value."""
    return {KEYS.get(name, name): settings[name] for name in SETTINGS if name in settings}


def out_of_range(check: ScanCheck, settings: Mapping[str, Any]) -> list[str]:
    """Where a scan lies outside of what a model was trained on, one sentence each.

    settings: of the checkpoint: its `shells`, `tolerance` and `missing`, and in `trained_on`, if it is there,
    "directions" of all its shells together, "voxel_mm" and "snr", each (lowest, highest).
    """
    near = {b: _directions_near(check, b, settings["tolerance"]) for b in settings["shells"]}
    absent = [f"no shell near the model's b = {b:g} s/mm²" for b, count in near.items() if not count]
    found = absent if settings["missing"] == "error" or len(absent) == len(near) else []
    values = {"directions": sum(near.values()), "voxel_mm": check.spacing_mm, "snr": check.snr}
    names = {"directions": "directions", "voxel_mm": "mm voxel size", "snr": "SNR"}
    for key, (low, high) in settings.get("trained_on", {}).items():
        value = values[key]
        several = value if isinstance(value, tuple) else (value,)
        if any(v is not None and not low * (1 - MARGIN) <= v <= high * (1 + MARGIN) for v in several):
            shown = " x ".join(f"{v:g}" for v in several)
            found.append(f"{shown} {names[key]}: the model was trained on {low:g} to {high:g}")
    return found


def _directions_near(check: ScanCheck, bval: float, tolerance: float) -> int:
    """Number of directions of the shells that the model takes for its own at `bval`."""
    return sum(count for b, count in check.shells if abs(b - bval) <= tolerance * bval)


def first_cause(error: BaseException) -> BaseException:
    """What MONAI's Compose and ConfigParser wrapped in RuntimeErrors."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _weights(task: str, checkpoint: str | os.PathLike[str] | None) -> Path:
    path = bundle_folder() / "models" / f"{task}.pt" if checkpoint is None else Path(checkpoint)
    if checkpoint is None and not path.is_file():
        raise FileNotFoundError(f"no released weights for task {task!r} ({path}); give a checkpoint")
    return path


def _scan_file(image: Any, bvals: Any, bvecs: Any, affine: Any, folder: Path) -> Path:
    """`image` if it is a file, else the array written as one."""
    if isinstance(image, str | os.PathLike):
        if bvals is not None or bvecs is not None or affine is not None:
            raise ValueError(f"{image} brings its own gradient table and affine: give none beside it")
        return Path(image)
    if bvals is None or bvecs is None:
        raise ValueError("an array needs bvals (N,) and bvecs (N, 3) in the world frame")
    if affine is None and not isinstance(image, MetaTensor):
        raise ValueError("an array needs an affine (4, 4)")
    affine = torch.as_tensor(image.affine if affine is None else affine).double()
    data = torch.as_tensor(image).as_subclass(Tensor).float()
    table = GradientTable(torch.as_tensor(bvals).double(), torch.as_tensor(bvecs).double())
    path = folder / "scan.nii"  # read at once: compressing would be wasted
    write_dwi(path, MetaTensor(data, affine=affine), table)
    return path


def _examine(scan: Path, weights: Path, settings: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Warnings about a scan, and what the prediction was made from."""
    image, table = read_dwi(scan)
    check = check_image(image.as_tensor(), table, image.affine, slice_world=image.meta.get("slice_world"))
    warnings = [*check.findings, *out_of_range(check, settings)]
    versions = {p: version(p) for p in ("torch", "monai")}
    provenance = {
        "Scan": scan.name,
        "TableSHA256": table.sha256,
        "Model": weights.name,
        "ModelSHA256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "Versions": {"dmri_monai": dmri_monai.__version__, **versions},
    }
    return tuple(warnings), provenance


def _run(
    scan: Path,
    weights: Path,
    settings: dict[str, Any],
    out: Path,
    warnings: tuple[str, ...],
    provenance: dict[str, Any],
    options: dict[str, Any],
) -> None:
    root = bundle_folder()
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"),
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(root),
        dataset_dir=str(scan),
        checkpoint=str(weights),
        output_dir=str(out),
        notes=list(warnings),
        provenance=provenance,
        **config_settings(settings),
        **options,
    )
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except RuntimeError as error:
        cause = first_cause(error)
        raise cause if isinstance(cause, ValueError | TypeError | OSError) else error from error


def _files(scan: Path, task: str, out: Path) -> dict[str, Path]:
    """What inference writes for `scan`."""
    stem = f"{nifti_stem(scan).removesuffix('_dwi')}_{find_task(task).label}"
    return {
        "prediction": out / f"{stem}.nii.gz",
        "uncertainty": out / f"{stem}uncertainty.nii.gz",
        "sidecar": out / f"{stem}.json",
        "report": out / "report.html",
    }
