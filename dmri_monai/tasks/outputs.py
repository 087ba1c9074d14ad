"""Kinds of prediction: what the network gives, what can be interpolated, and what is written.

`activate` works on the network's grid and leaves what can be interpolated, in the world frame; `decide` works on the
scan's grid and leaves the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from monai.transforms import Activationsd, AsDiscreted, MapTransform
from torch import Tensor

from dmri_monai.qspace.conventions import from_basis, to_basis
from dmri_monai.qspace.fibre_density import (
    DENSITY_IRREPS,
    DENSITY_ORDER,
    density_of_peaks,
    number_of_peaks,
    peaks_of_density,
)
from dmri_monai.so3 import even_orders, n_coefficients
from dmri_monai.transforms import (
    DirectionsToVoxelFramed,
    DirectionsToWorldFramed,
    DyadsToPeaksd,
    PeaksToDyadsd,
)
from dmri_monai.transforms.task_labels import (
    CheckLabeld,
    DensityLabeld,
    FractionLabeld,
    HarmonicsToPeaksd,
    LogitsToFractionsd,
)

__all__ = ["Axis", "Classes", "Density", "Fractions", "Output", "Score"]

MIN_COHERENCE = 0.3  # of interpolated unit axes; below it neighbours point anywhere
MOST_PEAKS = 4  # that a label of peaks may hold, fewer than would have the number of volumes of a density
WEAK = 0.1  # length of a density's coefficients below which its direction says little


@dataclass(frozen=True)
class Output:
    """One kind of prediction.

    irreps: of the network's output.  n_classes: of the label; None for other values.  shows: how a picture shows label
    and prediction.  directions: whether it has any, which depend on the b-vectors.  needs_head: the prediction is
    written inside the head alone.  form: what the values of the network are, for a bundle's metadata.
    """

    irreps: str
    n_classes: int | None
    shows: ClassVar[str | None]
    form: ClassVar[str] = "segmentation"
    directions: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False

    def check(self) -> list[MapTransform]:
        """Of a freshly loaded label."""
        return [CheckLabeld("label", self.n_classes)]

    def prepare(self) -> list[MapTransform]:
        """Of a label on its final grid: to what the loss takes, from the world into the voxel frame."""
        return []

    def activate(self) -> list[MapTransform]:
        """Of `pred` on the network's grid: to what can be interpolated, in the world frame."""
        raise NotImplementedError

    def decide(self) -> list[MapTransform]:
        """Of `pred` on the scan's grid: to what is predicted."""
        return []

    def features(self, output: Tensor) -> Tensor:
        """(B, K, X, Y, Z) of the network's output, of length at most 1; their spread over an ensemble is its
        uncertainty.
        """
        raise NotImplementedError

    def stored(self, values: Tensor) -> Tensor:
        """What is written of a prediction (C, X, Y, Z)."""
        return values.float()

    def derived(self, values: Tensor) -> dict[str, Tensor]:
        """Maps that follow from a prediction (C, X, Y, Z) and are written with it, by the kind of their file."""
        return {}

    def derived_meaning(self) -> dict[str, dict[str, Any]]:
        """Entries of the sidecars of these maps, in BIDS's words, by kind."""
        return {}

    def shown(self, values: Tensor, derived: Mapping[str, Tensor]) -> Tensor:
        """What a report shows of a prediction (C, X, Y, Z): class numbers (X, Y, Z) or peaks (3n, X, Y, Z)."""
        return self.stored(values)

    def shown_label(self, label: Tensor) -> Tensor:
        """The same of a label (C, X, Y, Z) as it is in its file."""
        return label[0].round().to(torch.uint8)

    def meaning(self, names: Sequence[str]) -> dict[str, Any]:
        """Entries of a sidecar: what the values mean, with the class names of the task."""
        return {"Labels": {"0": "background"} | {str(i): name for i, name in enumerate(names, start=1)}}

    def channels(self, names: Sequence[str]) -> list[str]:
        """What each channel of the network's output holds."""
        return ["background", *names]

    def describes(self, names: Sequence[str]) -> str:
        """The values that are written, in a sentence."""
        return ", ".join(f"{i} {name}" for i, name in enumerate(("background", *names)))


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

    def stored(self, values: Tensor) -> Tensor:
        return values[0].round().to(torch.uint8)


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

    def stored(self, values: Tensor) -> Tensor:
        return values[0].round().to(torch.uint8)

    def channels(self, names: Sequence[str]) -> list[str]:
        return list(names)


class Axis(Output):
    """One axis per voxel, as l = 2 harmonics in the voxel frame; written as peaks (3, X, Y, Z) in the world frame."""

    shows, form = "directions", "real spherical harmonics"
    directions, needs_head = True, True

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

    def shown_label(self, label: Tensor) -> Tensor:
        return label

    def meaning(self, names: Sequence[str]) -> dict[str, Any]:
        return {"Frame": "RAS+ world", "Values": "x y z of one unit axis per peak, NaN for none"}

    def channels(self, names: Sequence[str]) -> list[str]:
        return [f"axis l=2 m={m}" for m in range(-2, 3)]

    def describes(self, names: Sequence[str]) -> str:
        return "x y z of one unit axis per peak, RAS+ world frame, NaN for none"


class Density(Output):
    """The fibre orientation density of a voxel, harmonics to l = 8 in the voxel frame, whose integral is the fraction
    of white matter; written in MRtrix3's convention, in the world frame, with its peaks and their number.
    """

    shows, form = None, "real spherical harmonics"
    directions = True

    def __init__(self) -> None:
        super().__init__(DENSITY_IRREPS, None)

    def check(self) -> list[MapTransform]:
        size = n_coefficients(DENSITY_ORDER)
        volumes = [size, *range(3, 3 * MOST_PEAKS + 1, 3)]
        meaning = f"{size} of a density to l = {DENSITY_ORDER}, or 3 for each of up to {MOST_PEAKS} peaks"
        return [CheckLabeld("label", None, volumes=volumes, meaning=meaning)]

    def prepare(self) -> list[MapTransform]:
        return [DensityLabeld("label"), DirectionsToVoxelFramed("label", DENSITY_IRREPS)]

    def activate(self) -> list[MapTransform]:
        return [DirectionsToWorldFramed("pred", DENSITY_IRREPS, ref_key="image")]

    def features(self, output: Tensor) -> Tensor:
        return output / (output.square().sum(dim=1, keepdim=True) + WEAK**2).sqrt()

    def stored(self, values: Tensor) -> Tensor:
        return to_basis(values.double(), "tournier07", legacy=False).float()

    def derived(self, values: Tensor) -> dict[str, Tensor]:
        peaks = peaks_of_density(values)
        return {"peaks": peaks, "npeaks": number_of_peaks(peaks)}

    def derived_meaning(self) -> dict[str, dict[str, Any]]:
        encoding = {"Type": "3vector", "EncodingAxis": 3, "Reference": "xyz", "AntipodalSymmetry": True}
        return {
            "peaks": {
                "Description": "Peaks of the fibre orientation density, largest first, NaN for none",
                "Units": "fraction of the voxel per steradian",
                "Frame": "RAS+ world",
                "Values": "x y z of each peak, as long as the density is there",
                "OrientationEncoding": encoding,
            },
            "npeaks": {
                "Description": "Number of peaks of the fibre orientation density",
                "Units": "number of fibre populations",
            },
        }

    def shown(self, values: Tensor, derived: Mapping[str, Tensor]) -> Tensor:
        return derived["peaks"]

    def shown_label(self, label: Tensor) -> Tensor:
        if len(label) != n_coefficients(DENSITY_ORDER):
            label = to_basis(density_of_peaks(label), "tournier07", legacy=False)
        return peaks_of_density(from_basis(label.double(), "tournier07", legacy=False).float())

    def meaning(self, names: Sequence[str]) -> dict[str, Any]:
        return {
            "Frame": "RAS+ world",
            "Values": "fibre orientation density, whose integral over the sphere is the white-matter fraction",
            "OrientationEncoding": {
                "Type": "sh",
                "EncodingAxis": 3,
                "Reference": "xyz",
                "AntipodalSymmetry": True,
                "SphericalHarmonicBasis": "MRtrix3",
                "SphericalHarmonicDegree": DENSITY_ORDER,
            },
        }

    def channels(self, names: Sequence[str]) -> list[str]:
        orders = even_orders(DENSITY_ORDER)
        return [f"density l={order} m={m}" for order in orders for m in range(-order, order + 1)]

    def describes(self, names: Sequence[str]) -> str:
        return f"fibre orientation density, MRtrix3's harmonics to l = {DENSITY_ORDER}, RAS+ world frame"


class Fractions(Output):
    """Volume fractions of WM, GM and CSF, which sum to at most 1; the network gives logits of these and of the rest."""

    shows, form = "scores", "volume fractions"

    def __init__(self) -> None:
        super().__init__("4x0e", None)

    def check(self) -> list[MapTransform]:
        meaning = "3 of fractions, or 1 of class numbers"
        return [CheckLabeld("label", None, volumes=[3, 1], meaning=meaning)]

    def prepare(self) -> list[MapTransform]:
        return [FractionLabeld("label")]

    def activate(self) -> list[MapTransform]:
        return [LogitsToFractionsd("pred")]

    def features(self, output: Tensor) -> Tensor:
        return output.softmax(dim=1)

    def shown(self, values: Tensor, derived: Mapping[str, Tensor]) -> Tensor:
        return self._largest(values)

    def _largest(self, values: Tensor) -> Tensor:
        """(X, Y, Z) number of the largest of the fractions (3, X, Y, Z), 0 for the rest."""
        rest = 1 - values.sum(0, keepdim=True)
        return torch.cat([rest, values]).argmax(0).to(torch.uint8)

    def shown_label(self, label: Tensor) -> Tensor:
        return self._largest(label) if len(label) == 3 else super().shown_label(label)

    def meaning(self, names: Sequence[str]) -> dict[str, Any]:
        return {
            "LabelMap": list(names),
            "Values": "volume fractions, 0 to 1; what they lack to 1 is anything else",
        }

    def channels(self, names: Sequence[str]) -> list[str]:
        return [*names, "other"]

    def describes(self, names: Sequence[str]) -> str:
        return f"volume fractions of {', '.join(names)}"
