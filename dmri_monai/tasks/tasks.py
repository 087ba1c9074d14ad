"""The four tasks: which label file, which output, which loss and metrics, and the way back to the scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ignite.metrics import Metric
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceCELoss, DiceFocalLoss
from monai.transforms import Activationsd, AsDiscreted, MapTransform
from torch import Tensor, nn

from dmri_monai.losses import AxialLoss, CountedVoxelsLoss, CrossingsLoss
from dmri_monai.metrics import (
    AngularError,
    ClassificationScore,
    HausdorffDistanceMM,
    MetricHandler,
    PolarAngleError,
    VoxelRanking,
)
from dmri_monai.transforms import (
    DirectionsToVoxelFramed,
    DirectionsToWorldFramed,
    DyadsToPeaksd,
    PeaksToDyadsd,
)
from dmri_monai.transforms.task_labels import CheckLabeld, HarmonicsToPeaksd, IgnoreOutsided, LesionMapsd

__all__ = ["TASKS", "Task", "task"]

Transforms = list[MapTransform]
MIN_COHERENCE = 0.3  # of interpolated unit axes; below it neighbours point anywhere


@dataclass(frozen=True)
class Task:
    """What one task needs to be trained, validated, evaluated and inferred.

    label: ending of its label file in the BIDS derivatives, and of what is written.  irreps_out: of the network.
    n_classes: of the label; None for directions.  class_names: of its foreground classes.
    key: the metric that selects checkpoints and that methods are compared by; columns: what a subject's row of it
    holds.  outside: value of the label where a brain mask is 0.  shows: how a picture shows label and prediction.
    needs_head: directions are written inside the head alone.

    The functions return fresh objects:
    loss: of logits (B, C, X, Y, Z) and labels.
    prepare: labels, from the world to the voxel frame.
    validate: prediction and label on the network's grid, to what the metrics take.
    activate: the prediction on the network's grid, to what can be interpolated, in the world frame.
    score: prediction and label on the scan's grid, to what the metrics take.
    decide: the prediction on the scan's grid, to what is written.
    metric, further: the key metric, and the others of an evaluation by name.
    features: (B, K, X, Y, Z) of an output, of length at most 1, whose spread over an ensemble is its uncertainty.
    """

    name: str
    title: str
    label: str
    irreps_out: str
    n_classes: int | None
    class_names: tuple[str, ...]
    key: str
    columns: tuple[str, ...]
    loss: Callable[[], nn.Module]
    metric: Callable[[], Metric]
    validate: Callable[[], Transforms]
    activate: Callable[[], Transforms]
    score: Callable[[], Transforms]
    decide: Callable[[], Transforms]
    features: Callable[[Tensor], Tensor]
    further: Callable[[], dict[str, Metric]] = dict
    prepare: Callable[[], Transforms] = list
    val_key: str = ""
    lower_is_better: bool = False
    outside: float = -1.0
    shows: str = "classes"
    needs_head: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """For `subjects`: key of the item -> ending of the file."""
        return {"label": self.label}

    @property
    def validation_key(self) -> str:
        return self.val_key or f"val_{self.key}"

    @property
    def averages(self) -> bool:
        """Whether the columns can be averaged: they are classes."""
        return len(self.columns) > 1 and self.n_classes is not None

    @property
    def table_columns(self) -> dict[str, tuple[str, ...]]:
        """For `SubjectTable`: names of the columns of MONAI's metrics, which do not know them."""
        return {name: self.class_names for name in ("dice", "hd95") if name in (self.key, *self.further())}

    def check(self) -> Transforms:
        """Checks of a freshly loaded label."""
        return [CheckLabeld("label", self.n_classes)]

    def encode_label(self) -> Transforms:
        """Of a label on its final grid: the brain mask, and the voxel frame."""
        return [IgnoreOutsided("label", self.outside), *self.prepare()]


def task(name: str) -> Task:
    """The task of that name; ValueError naming the choices."""
    if name not in TASKS:
        raise ValueError(f"task is {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def _dice(keys: Sequence[str] = ("pred", "label"), **options: Any) -> Metric:
    return MeanDice(output_transform=from_engine(list(keys)), **options)


def _distance_95(keys: Sequence[str] = ("pred", "label"), **options: Any) -> Metric:
    return MetricHandler(HausdorffDistanceMM(**options), output_transform=from_engine(list(keys)))


def _one_hot(n_classes: int) -> MapTransform:
    return AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=n_classes)


def _softmax() -> Transforms:
    return [Activationsd("pred", softmax=True)]


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def _unit(field: Tensor) -> Tensor:
    return field / field.norm(dim=1, keepdim=True).clamp(min=1e-6)


def _argmax() -> Transforms:
    return [AsDiscreted("pred", argmax=True)]


TISSUES = ("WM", "GM", "CSF")
TISSUE = Task(
    name="tissue",
    title="Tissue segmentation",
    features=_probabilities,
    label="dseg",
    irreps_out="4x0e",
    n_classes=4,
    class_names=TISSUES,
    key="dice",
    val_key="val_mean_dice",
    columns=TISSUES,
    loss=lambda: DiceCELoss(to_onehot_y=True, softmax=True),
    metric=lambda: _dice(include_background=False),
    further=lambda: {"hd95": _distance_95(include_background=False)},
    validate=lambda: [_one_hot(4)],
    activate=_softmax,
    score=lambda: [_one_hot(4)],
    decide=_argmax,
    outside=0.0,  # the brain's outside is the background class
)

LESION_MAPS = ("pred_map", "label_map")
LESION = Task(
    name="lesion",
    title="Lesion segmentation",
    features=torch.sigmoid,
    label="lesion",
    irreps_out="1x0e",
    n_classes=2,
    class_names=("lesion",),
    key="average_precision",
    columns=("lesion",),
    loss=lambda: CountedVoxelsLoss(DiceFocalLoss(sigmoid=True)),
    metric=lambda: MetricHandler(VoxelRanking("average_precision")),
    further=lambda: {
        "average_precision_pooled": MetricHandler(VoxelRanking(pooled=True), save_details=False),
        "roc_auc": MetricHandler(VoxelRanking("roc_auc")),
        "dice": _dice(LESION_MAPS),
        "hd95": _distance_95(LESION_MAPS, include_background=True),
    },
    validate=lambda: [Activationsd("pred", sigmoid=True)],
    activate=lambda: [Activationsd("pred", sigmoid=True)],
    score=lambda: [LesionMapsd()],
    decide=lambda: [AsDiscreted("pred", threshold=0.5)],
    shows="scores",
)

CROSSINGS = ("no fibre", "1 fibre", "2 fibres", "3 fibres")
CROSSING = Task(
    name="crossings",
    title="Number of fibre crossings",
    features=_probabilities,
    label="npeaks",
    irreps_out="4x0e",
    n_classes=4,
    class_names=CROSSINGS[1:],
    key="macro_f1",
    columns=CROSSINGS,
    loss=CrossingsLoss,
    metric=lambda: MetricHandler(ClassificationScore(4, names=CROSSINGS)),
    further=lambda: {"accuracy": MetricHandler(ClassificationScore(4, "accuracy"))},
    validate=_argmax,
    activate=_softmax,
    score=_argmax,
    decide=_argmax,
)

ORIENTATION = Task(
    name="orientation",
    title="Principal fibre direction",
    features=_unit,
    label="peaks",
    irreps_out="1x2e",
    n_classes=None,
    class_names=(),
    key="angular_error",
    columns=("median_deg", "share_within"),
    loss=lambda: AxialLoss("l2"),
    metric=lambda: MetricHandler(AngularError()),
    further=lambda: {"polar": MetricHandler(PolarAngleError())},
    prepare=lambda: [DirectionsToVoxelFramed("label", "peaks")],
    validate=lambda: [HarmonicsToPeaksd("pred")],
    activate=lambda: [
        HarmonicsToPeaksd("pred"),
        DirectionsToWorldFramed("pred", "peaks", ref_key="image"),
        PeaksToDyadsd("pred"),  # these can be interpolated, axes cannot
    ],
    score=lambda: [DyadsToPeaksd("pred", MIN_COHERENCE)],
    decide=lambda: [DyadsToPeaksd("pred", MIN_COHERENCE)],
    lower_is_better=True,
    outside=float("nan"),
    shows="directions",
    needs_head=True,
)

TASKS = {one.name: one for one in (TISSUE, LESION, CROSSING, ORIENTATION)}
