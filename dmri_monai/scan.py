"""One diffusion scan as one value: image, gradient table, and what is known of the acquisition."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, GradientTable, b0_threshold_of
from dmri_monai.io.dwi import read_dwi, write_dwi
from dmri_monai.io.no_signal import require_signal
from dmri_monai.io.sidecars import BvecsChoice

__all__ = ["Acquisition", "Scan"]


@dataclass(frozen=True)
class Acquisition:
    """How a scan was acquired, where its sidecar tells; None where it does not.

    phase_encoding_world, slice_world: (3,) unit world vectors (RAS+) along increasing phase-encoding and slice index.
    total_readout_time_s, slice_timing_s (n,): seconds.  multiband_factor: slices excited together.
    """

    phase_encoding_world: Tensor | None = None
    slice_world: Tensor | None = None
    total_readout_time_s: float | None = None
    slice_timing_s: Tensor | None = None
    multiband_factor: int | None = None

    @classmethod
    def of(cls, image: Tensor) -> Acquisition:
        """What the meta data of `image` say, as :func:`dmri_monai.io.read_dwi` writes them there."""
        meta: Mapping[str, Any] = getattr(image, "meta", {})
        return cls(**{entry.name: meta.get(entry.name) for entry in fields(cls)})

    def to_meta(self) -> dict[str, Any]:
        """The known ones as entries of an image's meta data."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True, eq=False)
class Scan:
    """Raw signal (N, X, Y, Z) with its RAS+ affine, and the table of its N volumes in the world frame.

    image: MetaTensor; its meta data hold the acquisition.  path: the file it came from, None for an array.
    ValueError where image and table disagree, naming both numbers.
    """

    image: MetaTensor
    table: GradientTable
    path: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.image, MetaTensor):
            raise TypeError(
                f"a scan's image is {type(self.image).__name__}, expected MetaTensor with an affine"
            )
        if self.image.ndim != 4 or len(self.image) != len(self.table):
            raise ValueError(
                f"scan: image of shape {tuple(self.image.shape)} for {len(self.table)} gradients, "
                f"expected (N, X, Y, Z){self._place}"
            )

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        bvecs: BvecsChoice = "auto",
        b0_threshold: float = B0_THRESHOLD,
    ) -> Scan:
        """The DWI file at `path` with its sidecars, read once; options and errors as :func:`dmri_monai.io.read_dwi`."""
        image, table = read_dwi(Path(path), bvecs=bvecs, b0_threshold=b0_threshold)
        return cls(image, table, Path(path))

    @classmethod
    def of_arrays(
        cls,
        image: Any,
        bvals: Any,
        bvecs: Any,
        affine: Any = None,
        b0_threshold: float | None = None,
    ) -> Scan:
        """A scan of arrays: raw signal (N, X, Y, Z), b-values (N,) in s/mm², unit b-vectors (N, 3) in RAS+ world.

        affine: (4, 4), which a MetaTensor brings along; ValueError without one.  b0_threshold: by default that of the
        MetaTensor's reader, see :func:`b0_threshold_of`.
        """
        b0_threshold = b0_threshold_of(image) if b0_threshold is None else b0_threshold
        if affine is None and not isinstance(image, MetaTensor):
            raise ValueError("an array needs an affine (4, 4)")
        matrix = torch.as_tensor(image.affine if affine is None else affine).double()
        signal = torch.as_tensor(image).detach().as_subclass(Tensor).float()
        table = GradientTable(torch.as_tensor(bvals).double(), torch.as_tensor(bvecs).double(), b0_threshold)
        meta = Acquisition.of(image).to_meta() if isinstance(image, MetaTensor) else {}
        if b0_threshold != B0_THRESHOLD:
            meta["b0_threshold"] = float(b0_threshold)  # as `read_dwi` writes it
        return cls(MetaTensor(signal, affine=matrix, meta=meta), table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, selection: Any) -> Scan:
        """The volumes of `selection`, image and table together: (N,) bool, indices, a slice, or one index."""
        rows = _rows(selection, len(self))
        image = MetaTensor(
            self.signal[rows],
            affine=self.affine,
            meta={k: v for k, v in self.image.meta.items() if k != "affine"},
        )
        return Scan(image, self.table.select(rows), self.path)

    @property
    def signal(self) -> Tensor:
        """(N, X, Y, Z) plain tensor, sharing memory with `image`."""
        return self.image.as_subclass(Tensor)

    @property
    def affine(self) -> Tensor:
        """(4, 4) float64 on the CPU, RAS+, mm."""
        return torch.as_tensor(self.image.affine).as_subclass(Tensor).double().cpu()

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size along the array axes."""
        return tuple(round(v, 4) for v in self.affine[:3, :3].norm(dim=0).tolist())

    @property
    def acquisition(self) -> Acquisition:
        return Acquisition.of(self.image)

    @property
    def name(self) -> str:
        """File name, or "array" for a scan that came from none."""
        return "array" if self.path is None else self.path.name

    def item(self) -> dict[str, Any]:
        """What the dictionary transforms take: `image`, `bvals` (N,) and `bvecs` (N, 3), world frame, float32."""
        return {"image": self.image, "bvals": self.table.bvals.float(), "bvecs": self.table.bvecs.float()}

    def to_dipy(self) -> tuple[np.ndarray, np.ndarray, Any]:
        """`data` (X, Y, Z, N) float32, `affine` (4, 4) and DIPY's gradient table.

        The vectors are in the world frame, so what DIPY finds (tensors, peaks, harmonics) is in the world frame too.
        """
        data = self.signal.detach().cpu().movedim(0, -1).numpy()
        return data, self.affine.numpy(), self.table.to_dipy()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write NIfTI with `.bval` and `.bvec` (FSL frame), as :func:`dmri_monai.io.write_dwi`."""
        write_dwi(Path(path), self.image, self.table)

    def require_signal(self) -> None:
        """ValueError naming the file where the image is all 0, constant or negated: nothing to predict or to learn."""
        require_signal(self.image, self.table.bvals, self.path)

    @property
    def _place(self) -> str:
        return "" if self.path is None else f" in {self.path}"


def _rows(selection: Any, count: int) -> Tensor:
    """Indices (M,) of `selection` among `count` volumes."""
    if isinstance(selection, int | slice):
        return torch.arange(count)[selection].reshape(-1)
    chosen = torch.as_tensor(selection)
    if chosen.dtype == torch.bool and chosen.shape != (count,):
        raise ValueError(f"selection has shape {tuple(chosen.shape)} for {count} volumes")
    return torch.nonzero(chosen).flatten() if chosen.dtype == torch.bool else chosen.long()
