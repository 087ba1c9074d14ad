"""Kinds of prediction: what the network gives, what can be interpolated, and what is written.

`activate` works on the network's grid and leaves what can be interpolated, in the world frame; `decide` works on the
scan's grid and leaves what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from monai.transforms import Activationsd, AsDiscreted, MapTransform
from torch import Tensor

from dmri_monai.transforms import (
    DirectionsToVoxelFramed,
    DirectionsToWorldFramed,
    DyadsToPeaksd,
    PeaksToDyadsd,
)
from dmri_monai.transforms.task_labels import HarmonicsToPeaksd

__all__ = ["Axis", "Classes", "Output", "Score"]

MIN_COHERENCE = 0.3  # of interpolated unit axes; below it neighbours point anywhere


@dataclass(frozen=True)
class Output:
    """One kind of prediction.

    irreps: of the network's output.  n_classes: of the label; None for directions.  shows: how a picture shows label
    and prediction.  needs_head: the prediction is written inside the head alone.
    """

    irreps: str
    n_classes: int | None
    shows: ClassVar[str]
    needs_head: ClassVar[bool] = False

    def prepare(self) -> list[MapTransform]:
        """Of a label on its final grid: from the world into the voxel frame."""
        return []

    def activate(self) -> list[MapTransform]:
        """Of `pred` on the network's grid: to what can be interpolated, in the world frame."""
        raise NotImplementedError

    def decide(self) -> list[MapTransform]:
        """Of `pred` on the scan's grid: to what is written."""
        raise NotImplementedError

    def features(self, output: Tensor) -> Tensor:
        """(B, K, X, Y, Z) of the network's output, of length at most 1; their spread over an ensemble is its
        uncertainty.
        """
        raise NotImplementedError


class Classes(Output):
    """One of n classes per voxel, 0 for none of them; the network gives logits."""

    shows = "classes"

    def __init__(self, n_classes: int) -> None:
        super().__init__(f"{n_classes}x0e", n_classes)

    def activate(self) -> list[MapTransform]:
        return [Activationsd("pred", softmax=True)]

    def decide(self) -> list[MapTransform]:
        return [AsDiscreted("pred", argmax=True)]

    def features(self, output: Tensor) -> Tensor:
        return output.softmax(dim=1)


class Score(Output):
    """The probability of one finding per voxel, written where it is at least one half; the network gives its logit."""

    shows = "scores"

    def __init__(self) -> None:
        super().__init__("1x0e", 2)

    def activate(self) -> list[MapTransform]:
        return [Activationsd("pred", sigmoid=True)]

    def decide(self) -> list[MapTransform]:
        return [AsDiscreted("pred", threshold=0.5)]

    def features(self, output: Tensor) -> Tensor:
        return output.sigmoid()


class Axis(Output):
    """One axis per voxel, as l = 2 harmonics in the voxel frame; written as peaks (3, X, Y, Z) in the world frame."""

    shows = "directions"
    needs_head = True

    def __init__(self) -> None:
        super().__init__("1x2e", None)

    def prepare(self) -> list[MapTransform]:
        return [DirectionsToVoxelFramed("label", "peaks")]

    def activate(self) -> list[MapTransform]:
        to_world = DirectionsToWorldFramed("pred", "peaks", ref_key="image")
        return [
            HarmonicsToPeaksd("pred"),
            to_world,
            PeaksToDyadsd("pred"),
        ]  # dyads can be interpolated, axes cannot

    def decide(self) -> list[MapTransform]:
        return [DyadsToPeaksd("pred", MIN_COHERENCE)]

    def features(self, output: Tensor) -> Tensor:
        return output / output.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny ** 0.5)
