"""The same head in slices of different angles: do the answers agree at the same place? As JSON lines.

Pairs of scans of one session (`PAIRS`), which share the world frame.  Nothing is registered, or, with `--registered`,
the second head is laid on the first, rigidly, its directions turned with it.  Each voxel of the first
scan is compared with the voxel of the second that is nearest in the world, inside the head of both.  angle_deg,
within_10: median angle between main directions, and share within 10 degrees, where a tensor has FA > 0.45 in both
scans, 90 degrees where one of the two has none; answered: share of these voxels with a direction in both scans, and in
these angle_answered_deg and tensor_answered_deg, of the tensor's main directions.  same: share of voxels of the same
class, where one of the two scans has one other than 0.

Run: python -m benchmarks.real.slice_angles DATA [--models fod tissue model.pt ...] [--registered]

DATA: folder of scans, as BIDS
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.real.registration import rigid
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.prediction import TrainedModel, load_model
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.reference import fibres
from dmri_monai.scan import Scan

PAIRS = (
    ("sub-canon_acq-axial", "sub-canon_acq-oblique"),
    ("sub-canon_acq-axial", "sub-canon_acq-sagittal"),
    ("sub-toshiba_acq-axial", "sub-toshiba_acq-oblique"),
    ("sub-siemenssagittal_dir-AP", "sub-siemenssagittal_dir-HF"),
)
ANISOTROPIC = 0.45  # FA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", default=["fod"], help="released models, or checkpoints")
    parser.add_argument("--registered", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    models = {name: load_model(name) for name in options.models}
    scans: dict[str, Scan] = {}
    known: dict[str, dict[str, Tensor]] = {}
    for pair in PAIRS:
        for name in pair:
            if name not in known:
                (path,) = options.data.rglob(f"{name}_dwi.nii.gz")
                scans[name] = Scan.read(path)
                known[name] = answers(scans[name], models)
        move = rigid(*(scans[name] for name in pair)) if options.registered else np.eye(4)
        for line in compared(*(known[name] for name in pair), torch.from_numpy(move)):
            print(
                json.dumps({"pair": " / ".join(pair), "registered": options.registered, **line}), flush=True
            )


def answers(scan: Scan, models: dict[str, TrainedModel]) -> dict[str, Tensor]:
    """affine; `fa` (1, X, Y, Z), `head`, `tensor`; by the model's name its directions (3, ...) or classes (1, ...)."""
    image, table = scan.signal, scan.table
    head = head_mask(mean_b0(image, table.bvals, table.b0_threshold))
    maps = fibres._tensor_maps(image, table, head)
    found = {"affine": scan.affine, "head": head[None], "fa": maps.fa[0], "tensor": maps.v1[0]}
    for name, model in models.items():
        prediction = model.predict(scan)
        output = model.task.output
        found[name] = prediction.peaks()[:3] if output.directions else prediction.values[None]
    return found


def compared(
    first: dict[str, Tensor], second: dict[str, Tensor], move: Tensor
) -> list[dict[str, float | str]]:
    """A line for every method.  move: (4, 4), from the first's world to the second's."""
    inside, place = nearest(first, second, move)
    at_first = {name: value[:, inside] for name, value in first.items() if name != "affine"}
    at_second = {name: value[(slice(None), *place.T)] for name, value in second.items() if name != "affine"}
    for value in at_second.values():
        if len(value) == 3:  # directions, back into the first's world
            value.copy_(move[:3, :3].T.to(value) @ value)
    in_both = (at_first["head"] > 0)[0] & (at_second["head"] > 0)[0]
    coherent = in_both & (at_first["fa"][0] > ANISOTROPIC) & (at_second["fa"][0] > ANISOTROPIC)
    lines: list[dict[str, float | str]] = []
    fitted = axial_angle_deg(at_first["tensor"].T, at_second["tensor"].T)[coherent]
    for name in sorted(set(at_first) - {"head", "fa"}):
        one, other = at_first[name], at_second[name]
        if len(one) == 3:
            angles = axial_angle_deg(one.T, other.T)[coherent]
            both = angles.isfinite()
            figures = {
                "angle_deg": float(angles.nan_to_num(90.0).median()),
                "within_10": float((angles <= 10).float().mean()),
                "answered": float(both.float().mean()),
                "angle_answered_deg": float(angles[both].median()),
                "tensor_answered_deg": float(fitted[both].median()),
            }
            lines.append({"method": name, "voxels": int(coherent.sum()), **figures})
        else:
            counted = in_both & ((one > 0) | (other > 0))[0]
            same = (one == other)[0, counted].float().mean()
            lines.append({"method": name, "voxels": int(counted.sum()), "same": float(same)})
    return lines


def nearest(first: dict[str, Tensor], second: dict[str, Tensor], move: Tensor) -> tuple[Tensor, Tensor]:
    """(X, Y, Z) bool: voxels of the first scan that lie in the second, and the second's voxel (V, 3) for each."""
    shape, other = first["fa"].shape[1:], torch.tensor(second["fa"].shape[1:])
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), dim=-1).double()
    change = torch.linalg.inv(second["affine"].double()) @ move @ first["affine"].double()
    index = (grid @ change[:3, :3].T + change[:3, 3]).round().long()
    inside = ((index >= 0) & (index < other)).all(-1)
    return inside, index[inside]


if __name__ == "__main__":
    main()
