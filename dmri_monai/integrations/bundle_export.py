"""A stand-alone MONAI bundle of one trained model, as the model zoo holds them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dmri_monai.inference.model import TrainedModel, load_model
from dmri_monai.inference.released import bundle_folder
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import save_model
from dmri_monai.integrations.bundle_metadata import bundle_metadata
from dmri_monai.io.writing import replacing

__all__ = ["OWN_WEIGHTS", "export_bundle", "write_bundle"]

CONFIGS = ("inference.json", "train.json", "evaluate.json", "logging.conf")
OWN_WEIGHTS = "@bundle_root + '/models/model.pt'"
Edit = Callable[[str, dict[str, Any]], None]


def export_bundle(name_or_path: str | Path, out: str | Path) -> Path:
    """Write a complete bundle of a released or trained model to the folder `out`, and return it.

    Configs for inference, evaluation and further training of its task, metadata, weights with their description,
    licence and a page of documentation.  It needs the package dmri-monai and nothing of this one's files.
    FileExistsError for a folder that is not empty; ValueError for a model that a bundle cannot describe.
    """
    model = load_model(name_or_path, "cpu")
    return write_bundle(model, Path(out))


def write_bundle(model: TrainedModel, out: Path, edit: Edit | None = None) -> Path:
    """:func:`export_bundle` of a loaded model; `edit` may change each config and the metadata, by the file's name,
    before it is written.
    """
    metadata = bundle_metadata(model.spec)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as (folder,):
        _fill(folder, model, metadata, edit)
    return out


def _fill(folder: Path, model: TrainedModel, metadata: dict[str, Any], edit: Edit | None) -> None:
    source, configs = bundle_folder(), folder / "configs"
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    for name in CONFIGS:
        if name.endswith(".json"):
            content = _own(name, model, json.loads((source / "configs" / name).read_text(encoding="utf-8")))
            if edit is not None:
                edit(name, content)
            _write_json(configs / name, content)
        else:
            shutil.copyfile(source / "configs" / name, configs / name)
    if edit is not None:
        edit("metadata.json", metadata)
    _write_json(configs / "metadata.json", metadata)
    shutil.copyfile(source / "LICENSE", folder / "LICENSE")
    (folder / "docs" / "README.md").write_text(_readme(model), encoding="utf-8")
    save_model(model.network, folder / "models" / "model.pt", model.spec)


def _own(name: str, model: TrainedModel, config: dict[str, Any]) -> dict[str, Any]:
    """A config of the package's bundle that uses the bundle's own weights and the objective of their task.

    Nothing of the model's description is copied into a config, where it would be evaluated: it is read from beside the
    weights.
    """
    config["bundle_root"] = "."
    if "objective" in config:
        overlay = bundle_folder() / "configs" / "tasks" / f"{model.learned.name}.json"
        config["objective"] = json.loads(overlay.read_text(encoding="utf-8"))["objective"]
    if name == "train.json":
        description = "dmri_monai.inference.ModelSpec.load(@bundle_root + '/models/model.json')"
        config["model"] = f"${description}.untrained()"
        config["network"] = config["network"].replace("@pretrained", f"@pretrained or {OWN_WEIGHTS}")
    else:
        config["model"] = f"$dmri_monai.inference.load_model(@checkpoint or {OWN_WEIGHTS}, @device)"
        config.pop("task", None)
    return config


def _readme(model: TrainedModel) -> str:
    spec, task = model.spec, model.task
    ranges = {name: value for name, value in spec.trained_on.model_dump().items() if value}
    trained = (
        "; ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ranges.items()) or "not recorded"
    )
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    labels = "labels"
    if spec.learned is not None:
        labels = f"labels of the task {spec.learned}, which the network has learned and from which {task.name} follows"
    return f"""# {task.title}

A MONAI bundle of one model for diffusion MRI: {type(model.network).__name__}, {parameters} parameters, for raw scans
with {_shells_of(spec)}.  It needs the package dmri-monai.  Run in this folder, or with `--bundle_root FOLDER`:

    python -m monai.bundle run inferring --config_file configs/inference.json \\
        --dataset_dir SCAN_OR_FOLDER --output_dir OUT

`SCAN_OR_FOLDER` is a NIfTI file with its gradient table, or a folder of scans (BIDS, HCP, or files side by side).
Results are `*_{task.label}.nii.gz` with a JSON sidecar each, and `report.html`.  `evaluating` with
`configs/evaluate.json` and `training` with `configs/train.json`, which goes on from these weights, take a BIDS folder
with {labels}.

Ranges of the training scans: {trained}.  Research only, not for clinical use.
"""


def _shells_of(spec: ModelSpec) -> str:
    if spec.takes == "shell-set":
        return "any shells"
    shells = ", ".join(f"{b:g}" for b in spec.shells)
    outside = "refused" if spec.missing == "error" else "taken as absent"
    return f"shells near b = {shells} s/mm² (a shell that a scan lacks is {outside})"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
