"""What a network sees and how it is built: one description that training, evaluation and inference share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from monai.engines import PrepareBatchExtraInput
from monai.engines.utils import default_prepare_batch
from monai.transforms import MapTransform
from torch import nn

from dmri_monai.equivariant import Concat, Sum, as_irreps
from dmri_monai.networks import EquivariantUNet, PlainUNet, PQSegmentationNet
from dmri_monai.qspace.shell_fit import ShellFit, harmonic_irreps
from dmri_monai.transforms import NormalizeByB0d, ResampleDirectionsd, SphericalHarmonicsd, ToVoxelFramed

__all__ = ["ARCHITECTURES", "Model", "build_network", "to_device", "prepare_batch"]

# what the network takes in: harmonic channels, fixed directions, or the samples with their table
ARCHITECTURES = {
    "equivariant": "harmonics",
    "plain": "harmonics",
    "plain-directions": "directions",
    "pq": "samples",
}
FILTERS = {"tiny": 8, "small": 16, "base": 32}  # of PlainUNet; 16 as published
PQ_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"pq": [[3, 1]], "p": [[6, 2]], "kernel_size": 3},
    "small": {},  # the defaults: the best model of Müller et al. 2021
    "base": {"pq": [[7, 4], [7, 4]], "p": [[40, 10], [20, 5], [10, 3]]},
}
SAMPLE_KEYS = {"bvals": "bvals", "bvecs_voxel": "bvecs_voxel", "mask": "valid"}


@dataclass(frozen=True)
class Model:
    """A network by name, and the channels it takes.

    architecture: "equivariant" (EquivariantUNet on harmonic channels), "plain" (PlainUNet on the same channels),
        "plain-directions" (PlainUNet on S/S0 in `n_directions` resampled directions a shell, as published in 2022),
        "pq" (PQSegmentationNet on the samples themselves).
    size: "tiny", "small" or "base"; for "equivariant" also the irreps of every level.
    options: further arguments of the network's class, e.g. {"filters": 24}.
    shells (s/mm²), l_max, tolerance, missing, too_few, order_scale: as of `dmri_monai.transforms.SphericalHarmonicsd`.
    """

    architecture: str = "equivariant"
    size: str | Sequence[str] = "small"
    options: Mapping[str, Any] = field(default_factory=dict)
    shells: Sequence[float] = (1000.0,)
    l_max: int = 4
    tolerance: float = 0.2
    missing: str = "error"
    too_few: str = "error"
    order_scale: Sequence[float] | None = None
    n_directions: int = 64

    def __post_init__(self) -> None:
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        if isinstance(self.size, str) or self.architecture != "equivariant":
            _check_choice("size", self.size, FILTERS)
        if self.missing == "zero" and self.takes == "directions":
            raise ValueError(
                "missing='zero' needs harmonic channels; 'plain-directions' has no presence channel"
            )
        self.fit()  # its own errors

    @property
    def takes(self) -> str:
        """What the network takes in: "harmonics", "directions" or "samples"."""
        return ARCHITECTURES[self.architecture]

    @property
    def irreps(self) -> str:
        """Irreps of the scan's harmonic channels: input of two architectures, target of all pretext tasks."""
        return harmonic_irreps(len(self.shells), self.l_max, self.missing == "zero")

    @property
    def in_channels(self) -> int | None:
        """Number of input channels; None where every scan brings its own."""
        if self.takes == "samples":
            return None
        harmonics: int = as_irreps(self.irreps).dim
        return harmonics if self.takes == "harmonics" else self.n_directions * len(self.shells)

    @property
    def multiple(self) -> int:
        """The network takes sizes that are multiples of this."""
        return 8 if self.architecture.startswith("plain") else 1

    @property
    def keys(self) -> list[str]:
        """Entries of an item, besides the image, that the network takes."""
        return ["bvals", "bvecs_voxel"] if self.takes == "samples" else []

    def fit(self) -> ShellFit:
        """How shells become harmonics."""
        return ShellFit(
            tolerance=self.tolerance, missing=self.missing, too_few=self.too_few, order_scale=self.order_scale
        )

    def encode(self) -> list[MapTransform]:
        """From a raw scan on its final grid to what the network takes in, in the voxel frame."""
        shells: dict[str, Any] = {"shells": self.shells, "l_max": self.l_max, "tolerance": self.tolerance}
        if self.takes == "samples":
            return [NormalizeByB0d("image", b0="collapse"), ToVoxelFramed("image")]
        if self.takes == "directions":
            resample = ResampleDirectionsd("image", self.n_directions, too_few=self.too_few, **shells)
            return [resample, NormalizeByB0d("image", b0="drop")]
        shells |= {"missing": self.missing, "too_few": self.too_few, "order_scale": self.order_scale}
        return [SphericalHarmonicsd("image", **shells)]

    @property
    def b_max(self) -> float:
        """s/mm² at which |q| is 1 for a network on samples: with another one its weights mean something else."""
        b_max: float = self.options.get("b_max", max(self.shells))
        return b_max

    def settings(self, **more: Any) -> dict[str, Any]:
        """Everything a checkpoint of this model depends on, and `more` such as its task, as plain JSON values.

        Objects among the options, such as a kernel, are written as the entries of a config that make them.
        """
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        scale = {"b_max": self.b_max} if self.takes == "samples" else {}
        settings: dict[str, Any] = json.loads(json.dumps({**more, **own, **scale}, default=_as_config))
        return settings


def build_network(model: Model, irreps_out: str) -> nn.Module:
    """The network of `model` with output `irreps_out`: "4x0e" for four classes, "1x2e" for an axis."""
    if model.architecture == "equivariant":
        return EquivariantUNet(model.irreps, irreps_out, model.size, **model.options)
    assert isinstance(model.size, str)  # __post_init__ has checked it
    if model.architecture == "pq":
        options = {**PQ_SIZES[model.size], **model.options}
        return PQSegmentationNet(irreps_out, **{**options, "b_max": model.b_max})
    options = {"filters": FILTERS[model.size], **model.options}
    assert model.in_channels is not None  # of samples alone
    return PlainUNet(model.in_channels, as_irreps(irreps_out).dim, **options)


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` on `device`, channels last, which convolutions prefer, where all its weights have that format."""
    tensors = chain(network.parameters(), network.buffers())
    if any(tensor.ndim == 4 for tensor in tensors):  # of steerable kernels on q-space; torch would refuse
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


def prepare_batch(model: Model) -> Callable[..., Any]:
    """`prepare_batch` of MONAI's engines: adds the gradient table where the network takes samples."""
    return PrepareBatchExtraInput(SAMPLE_KEYS) if model.takes == "samples" else default_prepare_batch


def _as_config(value: Any) -> Any:
    """`value` as the entry of a config that makes it; as text where it is neither a kernel nor a dataclass."""
    if isinstance(value, Sum | Concat):
        content = {"kernels": value.terms if isinstance(value, Sum) else value.parts}
    elif is_dataclass(value):
        content = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    else:
        return str(value)
    return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **content}


def _check_choice(name: str, value: Any, choices: Mapping[str, Any]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
