"""Writing what inference found: NIfTI files in the space of the input, and the report."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.metrics import DiceHelper
from torch import Tensor

from dmri_monai.inference.inferers import VolumeInferer
from dmri_monai.io import read_nifti, write_nifti
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.writing import replacing
from dmri_monai.metrics import AngularError
from dmri_monai.report import Case, write_report
from dmri_monai.tasks.tasks import Task

__all__ = ["WriteResults"]

logger = logging.getLogger(__name__)


class WriteResults:
    """Ignite handler of an evaluator: writes every prediction, then a report over all of them.

    Items of `engine.state.output` hold `pred`, and `uncertainty` (1, X, Y, Z) if an ensemble gave one, on the grid of
    the scan file named by `pred.meta["filename_or_obj"]`: class numbers (1, X, Y, Z), or peaks (3n, X, Y, Z) in the
    world frame, MRtrix's convention.  The result of `sub-01_dwi.nii.gz` becomes `sub-01_<label of the task>.nii.gz`
    with the scan's own affine, its uncertainty `sub-01_<label>uncertainty.nii.gz`; scans of one name get their item's
    `subject` in front, ValueError where that does not tell them apart. A `label_path` in the item of the data list is
    the truth the report compares with.  inferer: whose deviation the report names, where there is any.
    provenance, notes: what the report says of the model, and what it warns of.  tables: heading -> CSV file, further
    tables for the report, such as an evaluation's. ValueError for one that is not there.
    """

    def __init__(
        self,
        task: Task,
        output_dir: str | Path,
        data: Sequence[Mapping[str, Any]],
        title: str | None = None,
        inferer: VolumeInferer | None = None,
        provenance: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
        tables: Mapping[str, str | Path] | None = None,
    ) -> None:
        self.task = task
        self.output_dir = Path(output_dir)
        self.truths = {Path(item["image"]).absolute(): item.get("label_path") for item in data}
        self.names = _names(data)
        self.title = task.title if title is None else title
        self.inferer = inferer
        self.provenance = dict(provenance or {})
        self.tables = {name: _rows(path) for name, path in (tables or {}).items()}
        if notes:
            self.tables["Warnings"] = [{"warning": note} for note in notes]
        self.class_names = dict(enumerate(task.class_names, start=1))
        self.cases: list[Case] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self.cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def write(self, engine: Engine) -> None:
        for item in engine.state.output:
            pred = item["pred"]
            scan = Path(pred.meta["filename_or_obj"])
            name = self.names[scan.absolute()]
            found = pred.as_subclass(Tensor).cpu()
            found = found.float() if self._is_field else found[0].round().to(torch.uint8)
            write_nifti(self._path(name), found, pred.affine)
            maps = {}
            if "uncertainty" in item:
                maps["Uncertainty"] = item["uncertainty"].as_subclass(Tensor)[0].float().cpu()
                write_nifti(self._path(name, "uncertainty"), maps["Uncertainty"], pred.affine)
            self.cases.append(self._case(name, scan, found, maps))

    def report(self, engine: Engine) -> None:
        if self.class_names:
            rows = ["0\tbackground", *(f"{i}\t{name}" for i, name in self.class_names.items())]
            with replacing(self.output_dir / f"{self.task.label}.tsv") as (temporary,):
                temporary.write_text("\n".join(["index\tname", *rows]) + "\n")
        path = write_report(
            self.output_dir / "report.html",
            self.cases,
            title=self.title,
            tables=self.tables,
            provenance=self.provenance,
        )
        logger.info("report: %s", path)

    @property
    def _is_field(self) -> bool:
        return self.task.n_classes is None

    def _path(self, name: str, kind: str = "") -> Path:
        return self.output_dir / f"{name}_{self.task.label}{kind}.nii.gz"

    def _case(self, name: str, scan: Path, found: Tensor, maps: dict[str, Tensor]) -> Case:
        truth_path = self.truths.get(scan.absolute())
        truth = None if truth_path is None else read_nifti(truth_path).as_subclass(Tensor)
        metrics = {} if truth is None else self._metrics(found, truth)
        if self.inferer is not None and self.inferer.deviation:
            metrics["Deviation of windows"] = self.inferer.deviation
        if truth is not None and not self._is_field:
            truth = truth[0].round().to(torch.uint8)
        return Case(name, scan, None, found, truth, self.class_names, metrics, maps)

    def _metrics(self, found: Tensor, truth: Tensor) -> dict[str, float]:
        if self._is_field:
            angles = AngularError()(found.unsqueeze(0), truth.unsqueeze(0))[0]
            return {"Median angle (°)": float(angles[0]), "Share below 10°": float(angles[1])}
        helper = DiceHelper(
            include_background=False,
            num_classes=len(self.class_names) + 1,
            reduction="none",
            get_not_nans=False,
        )
        values = helper(found[None, None].long(), truth[None].round().long())[0]
        names = self.class_names.values()
        return {f"Dice {name}": float(v) for name, v in zip(names, values.reshape(-1), strict=True)}


def _names(data: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
    """Scan -> name of its results, which no two scans share."""
    stems = {
        Path(item["image"]).absolute(): nifti_stem(Path(item["image"])).removesuffix("_dwi") for item in data
    }
    counts = Counter(stems.values())
    names: dict[Path, str] = {}
    for item in data:
        scan = Path(item["image"]).absolute()
        subject = f"{item['subject']}_" if counts[stems[scan]] > 1 and item.get("subject") else ""
        names[scan] = subject + stems[scan]
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise ValueError(f"{count} scans would write the same {name}_*: {_listed(names, name)}")
    return names


def _listed(names: Mapping[Path, str], name: str) -> str:
    return ", ".join(str(scan) for scan, own in names.items() if own == name)


def _rows(path: str | Path) -> list[dict[str, str | float]]:
    if not Path(path).is_file():
        raise ValueError(f"tables: there is no file {path}")
    with Path(path).open(newline="") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
