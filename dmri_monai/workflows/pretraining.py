"""Self-supervised pretraining: raw batches become (network input, target) on the training device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from ignite.engine import Engine
from torch import Tensor

from dmri_monai.qspace.basis import ShellFit
from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.transforms import check_voxel_frame
from dmri_monai.transforms.artifacts import corrupt, load_preset
from dmri_monai.workflows.checkpoint import Checkpoint

__all__ = ["PretrainBatch", "Pretext", "loss_of", "lower_is_better", "pretrain"]

Pretext = Literal["artifacts", "autoencoder", "none"]


class PretrainBatch:
    """`prepare_batch` of a MONAI engine: corrupts raw scans and fits harmonics, batched, on the engine's device.

    batch: `image` (B, N, X, Y, Z) raw, `bvals` (B, N), `bvecs_voxel` (B, N, 3), `valid` (B, N), `item_seed` (B,), as
    `collate_dwi` makes it. Returns (input, target), each (B, C, X, Y, Z) harmonic channels: the target of the scan as
    it is; the input of the same scan with simulated artifacts ("artifacts"; corruption: a preset), or the target
    itself ("autoencoder"). What is corrupted, and how, depends on `item_seed` alone.
    Reference: Weninger et al. 2022, BVM 2022; the strengths are our own definition.
    """

    def __init__(
        self,
        pretext: Pretext,
        shells: Sequence[float],
        l_max: int = 4,
        corruption: str | Mapping[str, Any] = "normal",
        **fit: Any,
    ) -> None:
        if pretext not in get_args(Pretext):
            raise ValueError(f"pretext is {pretext!r}, expected one of {get_args(Pretext)}")
        self.pretext = pretext
        self.shells = list(shells)
        self.l_max = l_max
        self.preset = load_preset(corruption)
        self.fit = ShellFit(**fit)

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        check_voxel_frame(batch["image"])
        image = batch["image"].as_tensor().to(device, non_blocking=non_blocking)
        # interpolation and storage can leave tiny negative magnitudes, which no scanner produces
        image = image.clamp(min=0)
        target = self._harmonics(image, batch)
        if self.pretext != "artifacts":
            return target.clone(), target
        corrupted, _ = corrupt(
            image,
            batch["bvals"],
            batch["bvecs_voxel"],
            affine=batch["image"].affine,
            preset=self.preset,
            seed=[int(seed) for seed in batch["item_seed"]],
            valid=batch["valid"],
            meta=[_scan_meta(batch["image"].meta, i) for i in range(len(image))],
        )
        return self._harmonics(corrupted, batch), target

    def _harmonics(self, image: Tensor, batch: Mapping[str, Any]) -> Tensor:
        return signal_to_harmonics(
            image,
            batch["bvals"],
            batch["bvecs_voxel"],
            shells=self.shells,
            l_max=self.l_max,
            mask=batch["valid"],
            fit=self.fit,
        )


def _scan_meta(meta: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Of collated `meta`, what the corruption uses of one scan; slice times do not survive a crop."""
    names = ("phase_encoding_world", "slice_world", "total_readout_time_s", "multiband_factor")
    return {name: meta[name][index] for name in names if name in meta}


def pretrain(trainer: Engine, pretext: Pretext, checkpoint: Checkpoint) -> None:
    """Run the trainer; for pretext "none" only save the initial weights, the control of every comparison."""
    if pretext == "none":
        checkpoint.save_network()
    else:
        trainer.run()


def lower_is_better(current: float, best: float) -> bool:
    """For `metric_cmp_fn` of MONAI's evaluators."""
    return current < best


def loss_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[dict[str, Tensor]]], float]:
    """`output_transform` of an ignite metric: the mean `loss` of the decollated items of an evaluator."""

    def transform(output: list[dict[str, Tensor]]) -> float:
        values = [loss(item["pred"].unsqueeze(0), item["label"].unsqueeze(0)) for item in output]
        return float(torch.stack(values).mean())

    return transform
