"""A trained model as one object: `load_model("tissue").predict(Scan.read(path))`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.data.utils import decollate_batch
from monai.transforms import Compose, Invertd, MapTransform
from torch import nn

import dmri_monai
from dmri_monai.check import check, quick_check
from dmri_monai.check.image_state import is_block
from dmri_monai.failures import detached_cause, first_cause, naming_scan
from dmri_monai.inference.architectures import SAMPLE_KEYS, build_network, smallest_size, to_device
from dmri_monai.inference.encoding import encode, resample_scan
from dmri_monai.inference.ensemble import Group, ensemble_of, split_uncertainty
from dmri_monai.inference.inferers import VolumeInferer
from dmri_monai.inference.out_of_range import out_of_range
from dmri_monai.inference.released import FOR_BLOCKS, find_weights, released_models
from dmri_monai.inference.result import Prediction
from dmri_monai.inference.spec import ModelSpec, spec_path
from dmri_monai.inference.weights import digest_of, load_weights
from dmri_monai.out_of_memory import telling_memory
from dmri_monai.scan import Scan
from dmri_monai.tasks.registry import find_task
from dmri_monai.tasks.task import Task
from dmri_monai.transforms import FillExtractedBraind, KeepBrainBodyd, collate_dwi

__all__ = ["TrainedModel", "load_model", "predict", "predict_all"]

EXTRACTED = "no signal around the brain, which was extracted: what has signal is told to be tissue"
MEMORY_ADVICE = "try `--window 64 64 64` (window=), `--device cpu`, or a scan with larger voxels"


class TrainedModel:
    """A network with its weights and everything needed to use it on a scan.

    spec: what it is.  network: on `device`, in evaluation mode.  weights: the file it came from.  for_blocks: name of
    the released model that answers in its place where the scan is a block without the shape of a head.
    """

    def __init__(
        self,
        spec: ModelSpec,
        network: nn.Module,
        device: torch.device,
        weights: Path,
        for_blocks: str | None = None,
    ) -> None:
        self.spec, self.network, self.device, self.weights = spec, network, device, weights
        self.for_blocks = for_blocks

    def __repr__(self) -> str:
        learned = "" if self.spec.learned is None else f" from {self.spec.learned}"
        made = f"{self.spec.task or 'no task yet'}{learned}, {type(self.network).__name__}"
        return f"TrainedModel({made}, {str(self.weights)!r}, {self.device})"

    @property
    def task(self) -> Task:
        """What it predicts; ValueError for a pretrained network, which has no task yet."""
        if self.spec.task is None:
            raise ValueError(
                f"{spec_path(self.weights)}: a pretrained network has no task yet; fine-tune it first"
            )
        return find_task(self.spec.task)

    @property
    def learned(self) -> Task:
        """What the network was trained for: another task than `task` where the prediction follows from that one's."""
        return self.task if self.spec.learned is None else find_task(self.spec.learned)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this model's predictions from another's: its weights, and what is done with what they tell."""
        kept = {"body_mm": self.spec.body_mm, "fill_extracted": self.spec.fill_extracted}
        return {"ModelSHA256": self.spec.sha256 or digest_of(self.weights), "ModelSettings": kept}

    @property
    def identities(self) -> list[dict[str, Any]]:
        """Of the models that may answer: its own, and that of the model for blocks."""
        return [self.identity, *([] if self._block_model is None else self._block_model.identities)]

    @cached_property
    def _block_model(self) -> TrainedModel | None:
        return None if self.for_blocks is None else load_model(self.for_blocks, self.device)

    def preprocessing(self, scan: Scan | None = None) -> Compose:
        """From the item of a scan to that of the network, as :meth:`encode` does it.

        scan: what it was read to have as b0 counts, up to which b-value; without one, the model's own threshold does.
        """
        spec = self.spec if scan is None else self.spec.replace(b0_threshold=scan.table.b0_threshold)
        keep = ["head"] if self.learned.output.needs_head else []
        return Compose([*resample_scan(spec), *encode(spec, keep=[*keep, *spec.maps])])

    def postprocessing(self, preprocessing: Compose, ensemble: Group | None = None) -> Compose:
        """From the network's output `pred` to the prediction on the scan's grid, undoing `preprocessing`."""
        return Compose([*self._decided(preprocessing, ensemble).transforms, *self._following()])

    def _following(self) -> list[MapTransform]:
        """From the prediction of the task that the network has learned to that of `task`, both on the scan's grid."""
        return [] if self.spec.learned is None else [self.task.follows[self.spec.learned]("pred")]

    def _decided(self, preprocessing: Compose, ensemble: Group | None) -> Compose:
        """From the network's output `pred` to the prediction of the task that it has learned."""
        keys = ["pred", "uncertainty"]
        invert = Invertd(
            keys,
            transform=preprocessing,
            orig_keys="image",
            nearest_interp=False,
            to_tensor=True,
            allow_missing_keys=True,
        )
        output = self.learned.output
        told = [*output.activate(), invert, *self.keep_body(), *output.decide()]
        return Compose([*split_uncertainty(ensemble), *told])

    def keep_body(self) -> list[MapTransform]:
        """Of what `activate` leaves of `pred`, on the scan's grid: fill a brain that was extracted (`fill_extracted`),
        else drop what is far from the brain (`body_mm`).
        """
        share, depth = self.spec.fill_extracted, self.spec.body_mm
        fill = [] if share is None else [FillExtractedBraind("pred", share)]
        return fill if depth is None else [*fill, KeepBrainBodyd("pred", depth, unless_key="extracted")]

    def encode(self, scan: Scan) -> dict[Hashable, Any]:
        """What the network takes in of `scan`: `image` (C, X, Y, Z) on the network's grid, and its table where needed.

        ValueError or TypeError for a scan that the model cannot use, such as one without its shells.
        """
        with naming_scan(scan.path):
            return self._apply(self.preprocessing(scan), scan.item())

    def predict(
        self,
        scan: Scan,
        *,
        ensemble: Group | None = None,
        window: tuple[int, int, int] | None = None,
        memory_gib: float | None = None,
    ) -> Prediction:
        """The prediction on the grid of `scan`, with warnings where the scan is doubtful.

        ensemble: "rotations" or "flips": average over turned copies of the scan, which also gives an uncertainty.
        window, memory_gib: of :class:`VolumeInferer`.  The scan is checked and compared with the training scans; what
        looks wrong is in `warnings`.  ValueError or TypeError for a scan the model cannot use, such as one without
        signal; MemoryError naming it and what to try where the memory does not suffice.
        """
        _ = self.task  # a pretrained network has none
        return self._follow(self._predict_learned(scan, ensemble, window, memory_gib))

    def _follow(self, found: Prediction) -> Prediction:
        """The prediction of `task` from that of the task the network has learned."""
        if self.spec.learned is None:
            return found
        image = Compose(self._following())({"pred": found.image})["pred"]
        return replace(found, task=self.task.name, image=image, provenance=self.provenance(found.scan))

    def _predict_learned(
        self,
        scan: Scan,
        ensemble: Group | None = None,
        window: tuple[int, int, int] | None = None,
        memory_gib: float | None = None,
    ) -> Prediction:
        """The prediction of the task that the network has learned, for a block perhaps by the model made for blocks."""
        block = self.for_blocks is not None and is_block(tuple(scan.signal.shape[1:]), scan.spacing_mm)
        if block and (model := self._block_model) is not None:
            by_voxels = model._predict_learned(scan, ensemble, window, memory_gib)
            note = f"a block without the shape of a head: predicted voxel by voxel, by {self.for_blocks}"
            return replace(by_voxels, warnings=(note, *by_voxels.warnings))
        with telling_memory(f"{scan.name} on {self.device}", MEMORY_ADVICE), naming_scan(scan.path):
            task, preprocessing = self.learned, self.preprocessing(scan)
            warnings = self.examine(scan)
            whole = VolumeInferer(
                self.spec.multiple, window, memory_gib, smallest=smallest_size(self.network)
            )
            inferer = ensemble_of(whole, ensemble, self.spec, task)
            batch = collate_dwi([self._apply(preprocessing, scan.item())])
            table = {k: batch[v] for k, v in SAMPLE_KEYS.items()} if self.spec.takes == "samples" else {}
            with torch.no_grad():
                inputs = batch["image"].to(self.device)
                output = inferer(inputs, self.network, **{k: v.to(self.device) for k, v in table.items()})
            if bad := int((~output.isfinite()).sum()):
                raise ValueError(f"{bad} of {output.numel()} values predicted for {scan.name} are not finite")
            item = decollate_batch({**batch, "pred": output})[0]
            found = self._apply(self._decided(preprocessing, ensemble), item)
            warnings = (*notes(found), *warnings)
            return Prediction(
                task=task.name,
                image=found["pred"].cpu(),
                uncertainty=found["uncertainty"].cpu() if "uncertainty" in found else None,
                deviation=whole.deviation,
                warnings=warnings,
                provenance=self.provenance(scan),
                scan=scan,
                files={},
            )

    def examine(self, scan: Scan) -> tuple[str, ...]:
        """What about `scan` makes a prediction doubtful, one sentence each.

        The quick check of the scan, the whole one (which judges the b-vectors) where directions are predicted, and
        where it lies outside of what the model was trained on.  ValueError for a scan that no network should see:
        without signal, or with values that are not finite.
        """
        directions = self.learned.output.directions
        findings = check(scan).findings if directions else quick_check(scan)
        if directions or self.spec.voxelwise:  # they do not need the shape of a head
            findings = tuple(finding for finding in findings if finding.code != "small-block")
        for finding in findings:
            if finding.severity == "error":
                raise ValueError(f"{finding.message}: {scan.path or scan.name}")
        return (*(finding.message for finding in findings), *out_of_range(scan, self.spec))

    def provenance(self, scan: Scan) -> dict[str, Any]:
        """From what a prediction of `scan` is made: hashes and versions."""
        versions = {name: version(name) for name in ("torch", "monai")}
        return {
            "Scan": scan.name,
            "TableSHA256": scan.table.sha256,
            "Model": self.weights.name,
            **self.identity,
            "Versions": {"dmri_monai": dmri_monai.__version__, **versions},
        }

    @staticmethod
    def _apply(transforms: Compose, item: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """`item` after `transforms`, whose errors come as they were raised: MONAI wraps them in RuntimeErrors."""
        try:
            return dict(transforms(dict(item)))
        except RuntimeError as error:
            if isinstance(first_cause(error), ValueError | TypeError | OSError | MemoryError):
                raise detached_cause(error) from None
            raise


def notes(item: Mapping[Any, Any]) -> tuple[str, ...]:
    """What was assumed of the scan when its prediction was made, one sentence each, from the predicted item."""
    return (EXTRACTED,) if item.get("extracted") else ()


def load_model(
    name_or_path: str | os.PathLike[str], device: str | torch.device | None = None
) -> TrainedModel:
    """A released model by its name ("tissue"), or one of your own by the path of its weights, ready to use.

    device: by default CUDA where there is one, else the CPU.  FileNotFoundError or ValueError naming the file where
    weights or description are missing, damaged, or do not belong together.
    """
    name = name_or_path if isinstance(name_or_path, str) else Path(name_or_path)
    weights = find_weights(name)
    spec = ModelSpec.load(spec_path(weights))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = load_weights(build_network(spec), weights, spec)
    # a kill between the two renames leaves a description of newer weights beside the old ones
    spec = spec.replace(sha256=digest_of(weights))
    for_blocks = FOR_BLOCKS.get(str(name)) if weights == released_models().get(str(name)) else None
    return TrainedModel(spec, to_device(network, place).eval(), place, weights, for_blocks)


def predict(  # noqa: PLR0913  # the options of one command
    image: str | os.PathLike[str] | Scan | Any,
    bvals: Any = None,
    bvecs: Any = None,
    *,
    affine: Any = None,
    task: str = "tissue",
    checkpoint: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    report: bool = False,
    device: str | None = None,
    ensemble: Group | None = None,
    overwrite: bool = False,
) -> Prediction:
    """Run a trained model on one scan: :func:`load_model`, :meth:`TrainedModel.predict` and :meth:`Prediction.write`.

    image: a DWI file with its sidecars, a :class:`Scan`, or an array (N, X, Y, Z) of raw signal with `bvals` (N,) in
        s/mm², `bvecs` (N, 3) in the world frame (RAS+) and `affine` (4, 4), which a MetaTensor brings along.
    task: which released model; not used with a `checkpoint` of your own.
    output_dir, report, overwrite: of :meth:`Prediction.write`; without a folder nothing is written.

    What looks wrong with the scan is in `warnings`, never an error.  Raises ValueError or OSError for a scan or
    checkpoint that cannot be used.
    """
    if task not in released_models():
        find_task(task)
    model = load_model(task if checkpoint is None else Path(checkpoint), device)
    _ = model.task  # a pretrained network is refused before the scan is read
    scan = _scan(image, bvals, bvecs, affine, model.spec.b0_threshold)
    found = model.predict(scan, ensemble=ensemble)
    return found if output_dir is None else found.write(output_dir, report=report, overwrite=overwrite)


def predict_all(models: Sequence[TrainedModel], scan: Scan, **options: Any) -> Iterator[Prediction]:
    """The predictions of `scan` by each of `models`, with the options of :meth:`TrainedModel.predict`.

    Models of the same weights and settings, whose predictions follow from one density, run their network once.
    """
    known: dict[tuple[str, ...], Prediction] = {}
    for model in models:
        weights = model.spec.sha256 or str(model.weights.absolute())
        key = (weights, model.spec.untrained().text, str(model.device))
        if key not in known:
            known[key] = model._predict_learned(scan, **options)
        yield model._follow(known[key])


def _scan(image: Any, bvals: Any, bvecs: Any, affine: Any, b0_threshold: float) -> Scan:
    if isinstance(image, str | os.PathLike | Scan):
        if bvals is not None or bvecs is not None or affine is not None:
            raise ValueError(f"{image} brings its own gradient table and affine: give none beside it")
        return image if isinstance(image, Scan) else Scan.read(image, b0_threshold=b0_threshold)
    if bvals is None or bvecs is None:
        raise ValueError("an array needs bvals (N,) and bvecs (N, 3) in the world frame")
    return Scan.of_arrays(image, bvals, bvecs, affine, b0_threshold)
