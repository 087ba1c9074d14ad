"""From a scan to what a network takes in, and the way from files to items that training and prediction share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from monai.transforms import CopyItemsd, MapTransform, Orientationd, SelectItemsd, Spacingd

from dmri_monai.inference.spec import ModelSpec
from dmri_monai.tasks.task import Task
from dmri_monai.transforms import (
    NormalizeByB0d,
    RandDropShelld,
    RandSubsampleDirectionsd,
    ResampleDirectionsd,
    SphericalHarmonicsd,
    ToVoxelFramed,
)
from dmri_monai.transforms.task_labels import HeadMaskd, IgnoreOutsided

__all__ = ["encode", "encode_scan", "resample_scan", "subsample_measurements"]


# of the 98th percentile of b0: less is rounding, interpolation or nothing
SIGNAL = 0.01


def resample_scan(spec: ModelSpec) -> list[MapTransform]:
    """A scan to the grid that the network of `spec` sees: nearest to RAS+ axes, `spacing_mm` voxels.

    Where the prediction needs it, the item gets `signal`, where that is, on the scan's own grid.
    """
    signal = [HeadMaskd("image", "signal", SIGNAL)] if "signal" in spec.maps else []
    resample = [Spacingd("image", pixdim=spec.pixdim, mode="bilinear")] if spec.spacing_mm else []
    return [*signal, Orientationd("image", axcodes="RAS", labels=None), *resample]


def encode_scan(spec: ModelSpec) -> list[MapTransform]:
    """A raw scan on its final grid to what the network of `spec` takes in, in the voxel frame."""
    threshold: dict[str, Any] = {"b0_threshold": spec.b0_threshold}
    if spec.takes == "shell-set":
        own: dict[str, Any] = {"slots": spec.slots, "rescale": spec.deconvolution}
        return [SphericalHarmonicsd("image", "auto", spec.l_max, **own, **threshold)]
    shells = {"shells": spec.shells, "l_max": spec.l_max, "tolerance": spec.shell_tolerance, **threshold}
    if spec.takes == "samples":
        return [NormalizeByB0d("image", b0="collapse", **threshold), ToVoxelFramed("image")]
    if spec.takes == "directions":
        resample = ResampleDirectionsd(
            "image", spec.n_directions, too_few=spec.insufficient_directions, **shells
        )
        return [resample, NormalizeByB0d("image", b0="drop", **threshold)]
    shells |= {
        "missing": spec.missing,
        "too_few": spec.insufficient_directions,
        "order_scale": spec.order_scale,
    }
    return [SphericalHarmonicsd("image", **shells)]


def encode(
    spec: ModelSpec,
    task: Task | None = None,
    keep: Sequence[str] = (),
    target: Literal["label", "shells"] = "label",
) -> list[MapTransform]:
    """From scan and label on their final grid to the items of a batch: what the network takes, `label` and `keep`.

    task: prepares the label, for training and validation; None leaves it alone or does without.
    keep: further keys; "head" is made from the scan.
    target: "shells" makes of the network's input the label, NaN outside a `mask`, for a loss that needs no other, as
    `dmri_monai.losses.SphericalDeconvolutionLoss`.  ValueError for a model whose shells are not rescaled to the nominal
    fibre (`deconvolution` among its `network_options`).
    """
    label: list[MapTransform] = []
    if target == "shells":
        if not spec.deconvolution:
            raise ValueError(
                "target is 'shells', which needs architecture 'any' with network_options {'deconvolution': true}, got "
                f"{spec.architecture!r} with {dict(spec.network_options)}"
            )
        label = [CopyItemsd("image", names="label"), IgnoreOutsided("label", float("nan"))]
    elif task is not None:
        label = [IgnoreOutsided("label", task.outside), *task.output.prepare()]
    keys = ["image", *(["label"] if label else []), *spec.keys, *keep]
    head = [HeadMaskd("image")] if "head" in keep else []
    return [*head, *encode_scan(spec), *label, SelectItemsd(keys)]


def subsample_measurements(
    spec: ModelSpec, directions: Sequence[int] | int | None = None, drop_shells: float = 0.0
) -> list[MapTransform]:
    """Random choice of measurements, so that one checkpoint serves many tables.

    directions: fewest and most directions per shell, or one number for both; None keeps all.  One b0 volume at least
    stays.  drop_shells: probability of leaving out shells, one always stays; needs missing="zero".
    """
    if not 0 <= drop_shells <= 1:
        raise ValueError(f"drop_shells is {drop_shells}, expected a probability")
    if drop_shells and spec.takes == "harmonics" and spec.missing != "zero":
        raise ValueError(f"drop_shells = {drop_shells} needs missing='zero', got missing={spec.missing!r}")
    threshold: dict[str, Any] = {"b0_threshold": spec.b0_threshold}
    chosen: list[MapTransform] = []
    if directions is not None:
        fewest, most = (directions, directions) if isinstance(directions, int) else directions
        chosen.append(RandSubsampleDirectionsd("image", prob=1.0, directions=(fewest, most), **threshold))
    if drop_shells:
        chosen.append(RandDropShelld("image", prob=drop_shells, **threshold))
    return chosen
