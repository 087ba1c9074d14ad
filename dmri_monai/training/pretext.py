"""Self-supervised pretraining: raw batches become (network input, target) on the training device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from typing import Any, Literal, get_args

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor, nn

from dmri_monai.artifacts.engine import corrupt, load_preset
from dmri_monai.gradients import B0_THRESHOLD, cluster_shells
from dmri_monai.inference.architectures import prepare_batch
from dmri_monai.inference.encoding import encode_scan
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.io.acquisition import require_usable
from dmri_monai.losses import (
    HarmonicReconstructionLoss,
    MaskedReconstructionLoss,
    OwnShellsReconstructionLoss,
    SignalReconstructionLoss,
)
from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.qspace.shell_set import shell_channels, shell_set
from dmri_monai.so3 import even_orders, n_coefficients
from dmri_monai.training.checkpoint import Checkpoint
from dmri_monai.transforms import check_voxel_frame, collate_dwi

__all__ = ["PretrainBatch", "Pretext", "loss_of", "lower_is_better", "pretext_loss", "pretrain"]

Pretext = Literal["artifacts", "autoencoder", "masked", "none"]
SCAN_KEYS = ("bvals", "bvecs_voxel", "valid")


class PretrainBatch:
    """`prepare_batch` of a MONAI engine: makes input and target from raw scans, batched, on the engine's device.

    batch: `image` (B, N, X, Y, Z) raw, `bvals` (B, N), `bvecs` and `bvecs_voxel` (B, N, 3), `valid` (B, N),
    `item_seed` (B,), as `collate_dwi` makes it.  The input is encoded as `model` wants it, whatever it takes.
    "artifacts": the input is the scan with simulated artifacts (corruption: a preset), the target the harmonic
    channels (B, C, X, Y, Z) of the scan as it is.  "autoencoder": the same target, the input is the scan itself.
    "masked": the input lacks `hidden_fraction` of the measurements of every shell; the target is the raw scan as a
    mapping for `MaskedReconstructionLoss`, with `hidden` (B, N) and, for pictures, `harmonics`.
    What is drawn depends on `item_seed` alone.
    Reference: Weninger et al. 2022, BVM 2022; the strengths are our own definition.
    """

    def __init__(
        self,
        pretext: Pretext,
        model: ModelSpec,
        corruption: str | Mapping[str, Any] = "normal",
        hidden_fraction: float = 0.3,
    ) -> None:
        check_pretext(pretext)
        if not 0 < hidden_fraction < 1:
            raise ValueError(f"hidden_fraction is {hidden_fraction}, expected a number between 0 and 1")
        self.pretext, self.model, self.hidden_fraction = pretext, model, hidden_fraction
        self.preset = load_preset(corruption)
        # the visible rest of a shell may determine lower orders only
        lenient = model.replace(insufficient_directions="zero") if pretext == "masked" else model
        self.fit, self.encode = lenient.fit(), Compose(encode_scan(lenient))
        self.with_table = prepare_batch(model)

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[Any, ...]:
        check_voxel_frame(batch["image"])
        image = batch["image"].as_tensor().to(device, non_blocking=non_blocking)
        # interpolation and storage can leave tiny negative magnitudes, which no scanner produces
        image = image.clamp(min=0)
        target = self._harmonics(image, batch, batch["valid"])
        if self.pretext == "masked":
            return self._masked(image, batch, target)
        seen = self._corrupted(image, batch) if self.pretext == "artifacts" else image
        if self.model.takes != "harmonics":
            return self._encoded(seen, batch, batch["valid"], target)
        clean = self.pretext != "artifacts"
        return target.clone() if clean else self._harmonics(seen, batch, batch["valid"]), target

    def _corrupted(self, image: Tensor, batch: Mapping[str, Any]) -> Tensor:
        corrupted, _ = corrupt(
            image,
            batch["bvals"],
            batch["bvecs_voxel"],
            affine=batch["image"].affine,
            preset=self.preset,
            seed=[int(seed) for seed in batch["item_seed"]],
            valid=batch["valid"],
            meta=[scan_meta(batch["image"].meta, i) for i in range(len(image))],
        )
        return corrupted

    def _masked(self, image: Tensor, batch: Mapping[str, Any], harmonics: Tensor) -> tuple[Any, ...]:
        hidden = torch.stack(
            [
                self._hidden(bvals, valid.bool(), int(seed))
                for bvals, valid, seed in zip(batch["bvals"], batch["valid"], batch["item_seed"], strict=True)
            ]
        )
        table = {key: batch[key].cpu() for key in SCAN_KEYS}  # where the loss makes shells of it
        target = {"image": image, **table, "hidden": hidden, "harmonics": harmonics}
        visible = batch["valid"].bool() & ~hidden
        if self.model.takes != "harmonics":
            return self._encoded(image, batch, visible, target)
        return self._harmonics(image, batch, visible), target

    def _hidden(self, bvals: Tensor, valid: Tensor, seed: int) -> Tensor:
        model = self.model
        return hide(bvals, valid, self.hidden_fraction, model.l_max, seed, model.b0_threshold)

    def _harmonics(self, image: Tensor, batch: Mapping[str, Any], rows: Tensor) -> Tensor:
        if self.model.takes == "shell-set":
            return torch.stack([self._own_shells(image[b], batch, b, rows[b]) for b in range(len(image))])
        return signal_to_harmonics(
            image,
            batch["bvals"],
            batch["bvecs_voxel"],
            shells=self.model.shells,
            l_max=self.model.l_max,
            mask=rows,
            fit=self.fit,
        )

    def _own_shells(self, image: Tensor, batch: Mapping[str, Any], b: int, rows: Tensor) -> Tensor:
        """(C, X, Y, Z) channels of `pretext_irreps` of the shells that scan `b` (N, X, Y, Z) has."""
        rows, threshold, slots = rows.bool().cpu(), self.model.b0_threshold, self.model.slots
        bvals, bvecs = batch["bvals"][b].cpu()[rows], batch["bvecs_voxel"][b].cpu()[rows]
        shells = shell_set(bvals, bvecs, slots=slots, l_max=self.model.l_max, b0_threshold=threshold)
        own = shell_channels(image[rows.nonzero().flatten()], bvals, shells, b0_threshold=threshold)
        return torch.cat(
            [own[: 1 + 2 * slots], own[1 + 4 * slots :]]
        )  # without b and log n, which are no harmonics

    def _encoded(self, image: Tensor, batch: Mapping[str, Any], rows: Tensor, target: Any) -> tuple[Any, ...]:
        """Input for networks on shells, directions or samples: each scan goes through the transforms of fine-tuning."""
        items = []
        for b, kept in enumerate(rows.bool()):
            scan = MetaTensor(image[b][kept.nonzero().flatten()], affine=batch["image"].affine[b])
            item = {"image": scan, "bvals": batch["bvals"][b][kept], "bvecs": batch["bvecs"][b][kept]}
            encoded = self.encode(item)
            items.append({key: encoded[key] for key in ("image", *self.model.keys)})
        inputs, _, *table = self.with_table(collate_dwi(items), image.device)
        return inputs.as_tensor(), target, *table


def hide(
    bvals: Tensor,
    valid: Tensor,
    fraction: float,
    l_max: int,
    seed: int,
    b0_threshold: float = B0_THRESHOLD,
) -> Tensor:
    """(N,) bool: a random `fraction` of the measurements of every shell of `bvals` (N,), at least one.

    As many stay visible as harmonics up to `l_max` need; up to a lower order where nothing could be hidden otherwise.
    Volumes up to `b0_threshold` (s/mm²) are no shell.
    """
    sizes = [n_coefficients(order) for order in even_orders(l_max)]
    random = np.random.RandomState(seed % 2**32)
    hidden = torch.zeros_like(valid, dtype=torch.bool)
    rows = torch.nonzero(valid).flatten()
    for shell in cluster_shells(bvals[rows].cpu(), b0_threshold):
        n = len(shell.indices)
        fewest = max((size for size in sizes if size < n), default=n)
        count = min(max(1, round(fraction * n)), n - fewest)
        hidden[rows[shell.indices[torch.from_numpy(random.permutation(n)[:count].copy())]]] = True
    return hidden


def scan_meta(meta: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Of collated `meta`, what the corruption uses of one scan; slice times do not survive a crop.

    ValueError where an entry of its sidecar had to be left out.
    """
    names = (
        "phase_encoding_world",
        "slice_world",
        "total_readout_time_s",
        "multiband_factor",
        "b0_threshold",
    )
    known = {name: meta[name][index] for name in (*names, "acquisition_errors") if name in meta}
    require_usable(known)
    return {name: known[name] for name in names if known.get(name) is not None}


def check_pretext(pretext: str) -> None:
    if pretext not in get_args(Pretext):
        raise ValueError(f"pretext is {pretext!r}, expected one of {get_args(Pretext)}")


def pretext_loss(pretext: Pretext, model: ModelSpec) -> nn.Module:
    """Loss of a pretext: of harmonic channels, or ("masked") of the signal at the hidden measurements.

    ValueError for a network with deep supervision: the targets exist at full size alone.
    """
    check_pretext(pretext)
    if model.network_options.get("deep_supervision"):
        raise ValueError("deep_supervision is for training on labels, set it there: a pretext has one output")
    if pretext == "masked" and model.takes == "shell-set":
        return OwnShellsReconstructionLoss(model.slots, model.l_max, model.b0_threshold)
    if pretext == "masked":
        return MaskedReconstructionLoss(
            SignalReconstructionLoss(model.shells, model.l_max, b0_weight=0.0, fit=model.fit())
        )
    if (
        model.missing == "zero" or model.takes == "shell-set"
    ):  # shells that a scan lacks, and the presence channels, do not count
        weights = [1.0] * (model.slots if model.takes == "shell-set" else len(model.shells))
        return HarmonicReconstructionLoss(shell_weights=weights, l_max=model.l_max, presence=True)
    return HarmonicReconstructionLoss()


def pretrain(trainer: Engine, pretext: Pretext, checkpoint: Checkpoint) -> None:
    """Run the trainer; for pretext "none" only save the initial weights, the control of every comparison."""
    if pretext == "none":
        checkpoint.save_alone()
    else:
        trainer.run()


def lower_is_better(current: float, best: float) -> bool:
    """For `metric_cmp_fn` of MONAI's evaluators; anything is better than no value (NaN)."""
    return isnan(best) or current < best


def loss_of(
    loss: Callable[[Any, Any], Tensor], pred_key: str = "pred", label_key: str = "label"
) -> Callable[[list[dict[str, Any]]], float]:
    """`output_transform` of an ignite metric: the mean `loss` of the decollated items of an evaluator.

    Labels may be tensors or mappings of tensors.
    """

    def transform(output: list[dict[str, Any]]) -> float:
        values = [loss(_batched(item[pred_key]), _batched(item[label_key])) for item in output]
        return float(torch.stack(values).mean())

    return transform


def _batched(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _batched(part) for key, part in value.items()}
    return value.unsqueeze(0)
