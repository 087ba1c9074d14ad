"""Classical maps as channels: resampled directions, rotation invariants, tensor metrics, brain mask."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from e3nn import o3
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from dmri_monai.gradients import b0_threshold_of
from dmri_monai.qspace.b0 import brain_mask, mean_b0
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.harmonics import Measurements, shell_matrix
from dmri_monai.qspace.invariants import power_spectrum
from dmri_monai.qspace.shell_fit import ShellFit
from dmri_monai.qspace.tensor import fit_tensor, rotate_tensor, tensor_metrics
from dmri_monai.so3 import n_coefficients, sh_basis
from dmri_monai.transforms.frames import fix_voxel_frame, forget_voxel_frame, voxel_rotation
from dmri_monai.transforms.rows import item_mask, item_table, like
from dmri_monai.transforms.same_grid import check_same_grid

__all__ = ["BrainMaskd", "ResampleDirectionsd", "RotationInvariantsd", "TensorMetricsd"]


class ResampleDirectionsd(MapTransform):
    """Interpolate every shell onto a fixed set of directions, so that networks with fixed channels take any
    scan.

    The set is fixed in the *voxel frame*, where a channel then always means the same direction to a kernel:
    `directions` (M, 3), by default `n_directions` spread evenly.  Channels: mean b0 first (b0="first") or no
    b0 ("drop"), then the `shells` (s/mm², ascending), M volumes each.  The table follows: `bvals` nominal,
    `bvecs` in the world frame. Harmonics up to `l_max` interpolate (regularised fit); fit: fields of
    :class:`dmri_monai.qspace.shell_fit.ShellFit`. Raises ValueError as :class:`SphericalHarmonicsd` does.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        n_directions: int = 64,
        shells: Sequence[float] = (1000.0,),
        *,
        directions: Sequence[Sequence[float]] | None = None,
        l_max: int = 4,
        b0: Literal["first", "drop"] = "first",
        allow_lambda: bool = False,
        allow_missing_keys: bool = False,
        **fit: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scheme = spread_directions(n_directions) if directions is None else _unit(directions)
        self.shells, self.l_max, self.b0, self.fit = [float(b) for b in shells], l_max, b0, ShellFit(**fit)
        self.allow_lambda = allow_lambda

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item, tables = dict(data), []
        first: Any = None
        for key in self.key_iterator(item):
            first = item[key] if first is None else first
            check_same_grid(first, item[key], key, "ResampleDirectionsd")
            bvals, bvecs = item_table(item, key, "ResampleDirectionsd")
            rotation = voxel_rotation(item[key], "ResampleDirectionsd", self.allow_lambda)
            item[key] = self._resampled(item[key], bvals, bvecs.double().cpu() @ rotation)
            fix_voxel_frame(item[key], rotation)
            tables.append((self._bvals(bvals), self._bvecs(bvecs, rotation)))
        if tables:
            item["bvals"], item["bvecs"] = tables[0]
            for name in ("bvecs_voxel", "weights", "valid"):
                item.pop(name, None)
        return item

    def _resampled(self, image: MetaTensor, bvals: Tensor, bvecs_voxel: Tensor) -> MetaTensor:
        valid = torch.ones(len(bvals), dtype=torch.bool)
        scan = Measurements(bvals.cpu(), bvecs_voxel, valid, None)
        to_harmonics, _ = shell_matrix(scan, self.shells, self.l_max, self.fit)
        basis = sh_basis(self.scheme, self.l_max)
        blocks = to_harmonics.view(len(self.shells), n_coefficients(self.l_max), -1)
        matrix = torch.cat([basis @ block for block in blocks])
        data = image.as_tensor().float()
        out = torch.einsum("mn,n...->m...", matrix.to(data), data).clamp_(min=0.0)
        if self.b0 == "first":
            b0 = mean_b0(data, bvals, self.fit.b0_threshold)
            out = torch.cat([b0.unsqueeze(0), out])
        return like(image, out)

    def _bvals(self, bvals: Tensor) -> Tensor:
        values = [0.0] * (self.b0 == "first") + [b for b in self.shells for _ in self.scheme]
        return torch.tensor(values).to(bvals)

    def _bvecs(self, bvecs: Tensor, rotation: Tensor) -> Tensor:
        world = (self.scheme @ rotation.T).repeat(len(self.shells), 1)
        return torch.cat([world.new_zeros(int(self.b0 == "first"), 3), world]).to(bvecs)


def _unit(directions: Sequence[Sequence[float]]) -> Tensor:
    """(M, 3) float64 unit vectors, or ValueError."""
    scheme = torch.as_tensor(directions, dtype=torch.float64)
    if scheme.ndim != 2 or scheme.shape[1:] != (3,) or not (scheme.norm(dim=1) > 0).all():
        raise ValueError(f"directions must be (M, 3) vectors longer than 0, got shape {tuple(scheme.shape)}")
    return scheme / scheme.norm(dim=1, keepdim=True)


class RotationInvariantsd(MapTransform):
    """Replace harmonic channels by the power of every irrep: 0e as it is, l = 2, 4, ... as sum_m c_lm².

    Takes what :class:`SphericalHarmonicsd` gives; the result does not depend on the frame, so spatial
    transforms may follow.  See :func:`dmri_monai.qspace.invariants.power_spectrum`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            irreps = getattr(item[key], "meta", {}).get("irreps")
            if irreps is None:
                raise ValueError(
                    f"RotationInvariantsd: {key!r} holds no harmonics; apply SphericalHarmonicsd before"
                )
            power = power_spectrum(item[key].as_tensor().unsqueeze(0), irreps)[0]
            item[key] = like(item[key], power)
            forget_voxel_frame(item[key])
            item[key].meta["irreps"] = f"{o3.Irreps(irreps).num_irreps}x0e"
        return item


class TensorMetricsd(MapTransform):
    """Add maps of the weighted least-squares tensor of the scan in `keys`, named after `metrics`.

    metrics: of "b0" (the mean), "fa", "md", "ad", "rd" (1, X, Y, Z), "v1" (3, X, Y, Z) and "tensor"
    (6, X, Y, Z: xx yy zz xy xz yz), the last two in the world frame.  mask_key: voxels to fit, the others are 0.
    prefix: put before the names.  allow_lambda: a Lambda in the trace keeps the voxels in place.  Raises ValueError
    where the table cannot determine a tensor, or has no b0 when that is asked for; and as :func:`voxel_rotation`.
    """

    NAMES = ("b0", "fa", "md", "ad", "rd", "v1", "tensor")

    def __init__(
        self,
        keys: KeysCollection = "image",
        metrics: Sequence[str] = ("fa", "md"),
        *,
        mask_key: str | None = None,
        prefix: str = "",
        allow_lambda: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        unknown = sorted(set(metrics) - set(self.NAMES))
        if unknown:
            raise ValueError(f"metrics {unknown} are not among {self.NAMES}")
        self.metrics, self.mask_key, self.prefix = tuple(metrics), mask_key, prefix
        self.allow_lambda = allow_lambda

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            for name, value in self._maps(item, key).items():
                result = like(item[key], value)
                forget_voxel_frame(result)
                item[self.prefix + name] = result
        return item

    def _maps(self, item: dict[Hashable, Any], key: Hashable) -> dict[str, Tensor]:
        bvals, bvecs = item_table(item, key, "TensorMetricsd")
        rotation = voxel_rotation(item[key], "TensorMetricsd", self.allow_lambda)
        brain = item_mask(item, self.mask_key, key, "TensorMetricsd")
        tensor = fit_tensor(
            item[key].as_tensor().unsqueeze(0),
            bvals.unsqueeze(0),
            (bvecs.double().cpu() @ rotation).unsqueeze(0),
            brain=None if brain is None else brain.unsqueeze(0),
        )
        world = rotate_tensor(tensor, rotation)
        values = {**tensor_metrics(world)._asdict(), "tensor": world}
        if "b0" in self.metrics:
            values["b0"] = mean_b0(item[key].as_tensor(), bvals, b0_threshold_of(item[key]))[None, None]
        return {name: values[name][0] for name in self.metrics}


class BrainMaskd(MapTransform):
    """Add a brain mask (1, X, Y, Z), uint8, of the scan in `keys`, unless `mask_key` is there already.

    Parameters: :func:`dmri_monai.qspace.b0.brain_mask`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        mask_key: str = "mask",
        *,
        median_radius: int = 2,
        numpass: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key, self.median_radius, self.numpass = mask_key, median_radius, numpass

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            if self.mask_key in item:
                continue
            bvals, _ = item_table(item, key, "BrainMaskd")
            b0 = mean_b0(item[key].as_tensor(), bvals, b0_threshold_of(item[key]))
            mask = brain_mask(b0, median_radius=self.median_radius, numpass=self.numpass)
            item[self.mask_key] = like(item[key], mask.to(torch.uint8).unsqueeze(0))
        return item
