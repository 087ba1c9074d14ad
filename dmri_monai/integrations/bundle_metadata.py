"""What a bundle's `metadata.json` says of a model: its channels and its output, in MONAI's terms."""

from __future__ import annotations

import json
from typing import Any

from dmri_monai.inference.released import bundle_folder, released_models
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.so3 import even_orders
from dmri_monai.tasks.registry import find_task

__all__ = ["bundle_metadata", "input_channels"]

# on what the released models learned that list no scans (`bundle/models/README.md`)
VOXELS = "simulated voxels of dmri_monai.phantom"
HEADS = "simulated heads of dmri_monai.phantom, their fibres the reference peaks of TractSeg"
MULTIPLE = 16  # voxels per axis that every network takes


def bundle_metadata(spec: ModelSpec) -> dict[str, Any]:
    """The content of `metadata.json` for the model of `spec`; what holds for all models comes from the package's own.

    ValueError for a network whose number of channels depends on the scan, which the format cannot say.
    """
    if spec.task is None:
        raise ValueError(
            "metadata describe a trained network; a pretrained one has no task yet: fine-tune it first"
        )
    if spec.in_channels is None:
        raise ValueError(f"metadata describe a network with fixed channels, not {spec.architecture!r}")
    task, learned = find_task(spec.task), find_task(spec.learned or spec.task)
    common: dict[str, Any] = json.loads(
        (bundle_folder() / "configs" / "metadata.json").read_text(encoding="utf-8")
    )
    return {
        **common,
        "name": f"Diffusion MRI: {task.title[:1].lower()}{task.title[1:]}",
        "task": task.title,
        "description": f"{task.title} from raw diffusion MRI with any gradient table{_shells_needed(spec)}",
        "data_source": _data_source(spec),
        "label_classes": learned.output.describes(learned.class_names),
        "pred_classes": _predicted(spec),
        "network_data_format": {
            "inputs": {"image": _image(_input_format(spec), input_channels(spec), modality="MR")},
            "outputs": {"pred": _image(learned.output.form, learned.output.channels(learned.class_names))},
        },
    }


def input_channels(spec: ModelSpec) -> list[str]:
    """What each input channel holds, in order."""
    if spec.takes == "shell-set":
        shells = [f"shell {i}" for i in range(1, spec.slots + 1)]  # of the scan, ascending in b
    else:
        shells = [f"b={b:g}" for b in spec.shells]
    if spec.takes == "directions":
        return [f"S/S0 {shell} direction {i}" for shell in shells for i in range(spec.n_directions)]
    names = ["b0 / median b0", *(f"S/S0 {shell} l=0" for shell in shells)]
    if spec.missing == "zero" or spec.takes == "shell-set":
        names += [f"presence of {shell}" for shell in shells]
    if spec.takes == "shell-set":
        names += [f"b of {shell} in ms/µm²" for shell in shells]
        names += [f"log number of measurements of {shell}" for shell in shells]
    for degree in list(even_orders(spec.l_max))[1:]:
        for shell in shells:
            names += [f"S/S0 {shell} l={degree} m={m}" for m in range(-degree, degree + 1)]
    return names


def _data_source(spec: ModelSpec) -> str:
    """What the network learned from, which for a task that follows from another's is that one's data."""
    if spec.scans:
        source = (
            f"{len(spec.scans)} scans, listed in models/model.json with the hashes of their gradient tables"
        )
    else:
        known = [read_json(path.with_suffix(".json")).get("sha256") for path in released_models().values()]
        source = _simulated(spec) if spec.sha256 and spec.sha256 in known else "not recorded"
    if spec.learned is None:
        return source
    return f"that of task {spec.learned}, which the network has learned: {source}"


def _simulated(spec: ModelSpec) -> str:
    """What a released model learned from: each voxel alone, then neighbours on heads; or heads alone."""
    parts = [VOXELS] if spec.voxelwise else []
    if not spec.voxelwise or spec.network_options.get("neighbours"):
        parts.append(HEADS)
    return ", then ".join(parts)


def _predicted(spec: ModelSpec) -> str:
    """What is written, from the network's output where it follows from that."""
    if spec.learned is None:
        return "as label_classes"
    task = find_task(spec.task or "")
    return f"{task.output.describes(task.class_names)}; follows from the network's output, which is as label_classes"


def _shells_needed(spec: ModelSpec) -> str:
    if spec.takes == "shell-set":
        return ", whatever its shells"
    enough = "one or more" if spec.missing == "zero" else "all"
    return f" that has {enough} of the model's shells (b = {', '.join(f'{b:g}' for b in spec.shells)} s/mm²)"


def _image(kind: str, channels: list[str], **more: str) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        **more,
        "num_channels": len(channels),
        "spatial_shape": [f"{MULTIPLE}*n"] * 3,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(i): name for i, name in enumerate(channels)},
    }


def _input_format(spec: ModelSpec) -> str:
    if spec.takes == "directions":
        return "signal in directions fixed in the voxel frame"
    rescaled = ", rescaled to the nominal response of a fibre" if spec.deconvolution else ""
    return f"real spherical harmonics in the voxel frame, in e3nn's order (polar axis y){rescaled}"
