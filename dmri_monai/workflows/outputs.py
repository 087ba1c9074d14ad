"""Writing what inference found: NIfTI files in the space of the input, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.metrics import DiceHelper
from torch import Tensor

from dmri_monai.io import read_nifti, write_nifti
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.writing import replacing
from dmri_monai.report import Case, write_report

__all__ = ["WriteSegmentations"]


class WriteSegmentations:
    """Ignite handler of an evaluator: writes every predicted label map, then a report over all of them.

    Items of `engine.state.output` hold `pred` (1, X, Y, Z), class indices on the grid of the scan file named by
    `pred.meta["filename_or_obj"]`; the map of `sub-01_dwi.nii.gz` becomes `sub-01_dseg.nii.gz` with the scan's own
    affine. A `label_path` in the item of the data list is the truth the report compares with.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Sequence[str],
        data: Sequence[dict[str, Any]],
        suffix: str = "dseg",
        title: str = "Tissue segmentation",
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = dict(enumerate(class_names, start=1))
        self.truths = {str(Path(item["image"]).resolve()): item.get("label_path") for item in data}
        self.suffix = suffix
        self.title = title
        self.provenance = provenance or {}
        self.cases: list[Case] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self.cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def write(self, engine: Engine) -> None:
        for item in engine.state.output:
            pred = item["pred"]
            scan = Path(pred.meta["filename_or_obj"])
            labels = pred.as_subclass(Tensor)[0].round().to(torch.uint8).cpu()
            name = nifti_stem(scan).removesuffix("_dwi")
            target = self.output_dir / f"{name}_{self.suffix}.nii.gz"
            write_nifti(target, labels, pred.affine)
            self.cases.append(self._case(name, scan, labels))

    def report(self, engine: Engine) -> None:
        lines = ["index\tname", "0\tbackground", *(f"{i}\t{name}" for i, name in self.class_names.items())]
        with replacing(self.output_dir / f"{self.suffix}.tsv") as (temporary,):
            temporary.write_text("\n".join(lines) + "\n")
        path = write_report(
            self.output_dir / "report.html", self.cases, title=self.title, provenance=self.provenance
        )
        print(f"report: {path}")

    def _case(self, name: str, scan: Path, labels: Tensor) -> Case:
        truth_path = self.truths.get(str(scan.resolve()))
        truth = (
            None
            if truth_path is None
            else read_nifti(truth_path)[0].as_subclass(Tensor).round().to(torch.uint8)
        )
        metrics = {} if truth is None else self._dice(labels, truth)
        return Case(name, scan, prediction=labels, truth=truth, class_names=self.class_names, metrics=metrics)

    def _dice(self, labels: Tensor, truth: Tensor) -> dict[str, float]:
        n_classes = len(self.class_names) + 1
        helper = DiceHelper(
            include_background=False, num_classes=n_classes, reduction="none", get_not_nans=False
        )
        values = helper(labels[None, None].long(), truth[None, None].long())[0]
        return {f"Dice {name}": float(v) for name, v in zip(self.class_names.values(), values, strict=True)}
