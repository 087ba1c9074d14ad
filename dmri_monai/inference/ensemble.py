"""Test-time ensembles: the scan turned or mirrored, every answer turned back, their mean and their spread."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from dmri_monai.inference.spec import ModelSpec
from dmri_monai.networks.input_checks import with_meta_of
from dmri_monai.tasks.task import Task
from dmri_monai.testing import act_on_field, cube_rotations
from dmri_monai.transforms.rows import like

__all__ = ["RotationEnsemble", "SplitUncertaintyd", "ensemble_of", "grid_symmetries", "split_uncertainty"]

Group = Literal["rotations", "flips"]


def ensemble_of(inferer: Inferer, group: Group | None, spec: ModelSpec, task: Task) -> Inferer:
    """`inferer` itself for None, else an ensemble over the turns of `group` that the grid permits."""
    if group is None:
        return inferer
    if spec.takes == "directions":
        raise ValueError(
            "ensemble: 'plain-directions' has directions fixed in the voxel frame, which cannot be turned"
        )
    irreps = None if spec.takes == "samples" else spec.irreps
    return RotationEnsemble(inferer, grid_symmetries(group), irreps, task.irreps_out, task.output.features)


def grid_symmetries(group: Group) -> list[Tensor]:
    """The 24 rotations of the cube ("rotations"), or the 8 mirrorings along axes ("flips")."""
    if group not in get_args(Group):
        raise ValueError(f"ensemble is {group!r}, expected null or one of {', '.join(get_args(Group))}")
    if group == "rotations":
        return list(cube_rotations())
    return [r for r in cube_rotations(reflections=True) if r.abs().equal(torch.eye(3, dtype=r.dtype))]


def permitted(symmetries: Sequence[Tensor], image: Tensor) -> list[Tensor]:
    """Those of `symmetries` that keep the voxel size of `image`; all of them where it has no affine."""
    if not isinstance(image, MetaTensor):
        return list(symmetries)
    spacing = torch.as_tensor(image.affine).double().cpu()[..., :3, :3].norm(dim=-2).reshape(-1, 3)
    return [r for r in symmetries if ((spacing @ r.abs().T - spacing).abs() <= 1e-3 * spacing).all()]


class RotationEnsemble(Inferer):
    """Mean output over turns of scan and directions together, and one more channel: the spread.

    symmetries: the turns (3, 3); those that would change the voxel size of a scan are left out.
    Each member sees the volume turned, exactly, with its harmonics (irreps) or, for None, the `bvecs_voxel` among the
    arguments turned too; its output (irreps_out) is turned back.
    features: of an output (B, K, X, Y, Z), vectors of length at most 1, e.g. class probabilities.  The spread is the
    root of their summed variance, 0 where all members agree.  An equivariant network's members agree to rounding: for
    it the spread is a check, for others a per-voxel uncertainty.
    """

    def __init__(
        self,
        inferer: Inferer,
        symmetries: Sequence[Tensor],
        irreps: str | None,
        irreps_out: str,
        features: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.inferer, self.symmetries, self.features = inferer, list(symmetries), features
        self.irreps, self.irreps_out = irreps, irreps_out

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        plain = inputs.as_subclass(Tensor)
        irreps = self.irreps or f"{plain.shape[1]}x0e"
        output = mean = square = torch.zeros(())
        symmetries = permitted(self.symmetries, inputs)
        for turn in symmetries:
            turned = act_on_field(turn, plain, irreps).contiguous()
            # permitted turns keep the voxel size, which is what a network reads of the meta data
            answer = self.inferer(
                with_meta_of(inputs, turned), network, *args, **self._turned_table(kwargs, turn)
            )
            back = act_on_field(turn.T, answer.as_subclass(Tensor), self.irreps_out)
            features = self.features(back)
            output, mean, square = output + back, mean + features, square + features.square()
        n = len(symmetries)
        variance = (square / n - (mean / n).square()).clamp(min=0).sum(dim=1, keepdim=True)
        result = torch.cat([output / n, variance.sqrt()], dim=1)
        return with_meta_of(inputs, result)

    def _turned_table(self, kwargs: dict[str, Any], turn: Tensor) -> dict[str, Any]:
        if "bvecs_voxel" not in kwargs:
            return kwargs
        bvecs = kwargs["bvecs_voxel"]
        return {**kwargs, "bvecs_voxel": bvecs @ turn.T.to(bvecs)}


class SplitUncertaintyd(MapTransform):
    """Move the last channel of a :class:`RotationEnsemble`'s output to `uncertainty` (1, X, Y, Z)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            both = item[key]
            plain = torch.as_tensor(both).as_subclass(Tensor)
            parts = [
                like(both, part) if isinstance(both, MetaTensor) else part
                for part in (plain[:-1], plain[-1:])
            ]
            item[key], item["uncertainty"] = parts
        return item


def split_uncertainty(group: Group | None) -> list[MapTransform]:
    """The transforms that an ensemble's output needs first: none without an ensemble."""
    return [] if group is None else [SplitUncertaintyd("pred")]
