"""Writing what a bundle's inference found: files in the space of each scan, and one report over all of them."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.metrics import DiceHelper
from torch import Tensor

from dmri_monai.inference.inferers import VolumeInferer
from dmri_monai.inference.model import TrainedModel, notes
from dmri_monai.inference.result import Prediction, result_stem
from dmri_monai.io import read_nifti
from dmri_monai.io.sidecars import BvecsChoice
from dmri_monai.metrics import AngularError
from dmri_monai.report import Case, write_report
from dmri_monai.scan import Scan

__all__ = ["WriteResults"]

logger = logging.getLogger(__name__)


class WriteResults:
    """Ignite handler of an evaluator: writes every prediction as :meth:`Prediction.write` does, then a report over all.

    Items of `engine.state.output` hold `pred`, and `uncertainty` (1, X, Y, Z) if an ensemble gave one, on the grid of
    the scan file named by `pred.meta["filename_or_obj"]`.  Scans of one name get their item's `subject` in front;
    ValueError where that does not tell them apart, before any work.  A `label_path` in the item of the data list is the
    truth the report compares with.  What is doubtful about a scan is logged, and stands in sidecar and report.
    inferer: whose deviation the report names, where there is any.  bvecs: convention of the b-vectors, as the scans are
    read for the network.
    tables: heading -> CSV file, further tables for the report, such as an evaluation's; ValueError for one that is not
    there.
    """

    def __init__(
        self,
        model: TrainedModel,
        output_dir: str | Path,
        data: Sequence[Mapping[str, Any]],
        title: str | None = None,
        inferer: VolumeInferer | None = None,
        tables: Mapping[str, str | Path] | None = None,
        bvecs: BvecsChoice = "auto",
    ) -> None:
        self.model = model
        self.reader: dict[str, Any] = {"bvecs": bvecs, "b0_threshold": model.spec.b0_threshold}
        self.output_dir = Path(output_dir)
        self.truths = {Path(item["image"]).absolute(): item.get("label_path") for item in data}
        self.names = _names(data)
        self.title = title or model.task.title
        self.inferer = inferer
        self.tables: dict[str, list[dict[str, Any]]] = {
            name: _rows(path) for name, path in (tables or {}).items()
        }
        self.cases: list[Case] = []
        self.warnings: list[dict[str, str]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def start(self, engine: Engine) -> None:
        self.cases, self.warnings = [], []

    def write(self, engine: Engine) -> None:
        for item in engine.state.output:
            path = Path(item["pred"].meta["filename_or_obj"])
            scan = Scan.read(path, **self.reader)
            found = Prediction(
                task=self.model.task.name,
                image=item["pred"].cpu(),
                uncertainty=item.get("uncertainty"),
                deviation=self.inferer.deviation if self.inferer is not None else 0.0,
                warnings=(*notes(item), *self.model.examine(scan)),
                provenance=self.model.provenance(scan),
                scan=scan,
                files={},
            )
            name = self.names[path.absolute()]
            for warning in found.warnings:
                logger.warning("%s: %s", path, warning)
                self.warnings.append({"scan": name, "warning": warning})
            found.write(self.output_dir, name=name)
            self.cases.append(self._case(name, path, found))

    def report(self, engine: Engine) -> None:
        path = write_report(
            self.output_dir / "report.html",
            self.cases,
            title=self.title,
            tables={**self.tables, **({"Warnings": self.warnings} if self.warnings else {})},
            provenance={
                "Model": str(self.model.weights),
                "ModelSHA256": self.model.spec.sha256,
            },
        )
        logger.info("report: %s", path)

    def _case(self, name: str, path: Path, found: Prediction) -> Case:
        """Without the scan itself, which would fill the memory: the report reads it again."""
        truth_path = self.truths.get(path.absolute())
        truth = None if truth_path is None else read_nifti(truth_path).as_subclass(Tensor)
        case = found.case()
        metrics: dict[str, float] = {}
        if truth is not None and case.prediction is not None:
            truth = self.model.task.output.shown_label(truth)
            metrics = self._metrics(case.prediction, truth)
        shown = {"truth": truth, "metrics": {**case.metrics, **metrics}}
        return replace(case, name=name, image=path, table=None, reader=self.reader, **shown)

    def _metrics(self, found: Tensor, truth: Tensor) -> dict[str, float]:
        """Of what a report shows of prediction and truth."""
        names = self.model.task.class_names
        if not names:
            angles = AngularError()(found.unsqueeze(0), truth.unsqueeze(0))[0]
            return {"Median angle (°)": float(angles[0]), "Share below 10°": float(angles[1])}
        helper = DiceHelper(
            include_background=False, num_classes=len(names) + 1, reduction="none", get_not_nans=False
        )
        values = helper(found[None, None].long(), truth[None, None].long())[0]
        return {f"Dice {name}": float(v) for name, v in zip(names, values.reshape(-1), strict=True)}


def _names(data: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
    """Scan -> name of its results, which no two scans share."""
    stems = {Path(item["image"]).absolute(): result_stem(Path(item["image"])) for item in data}
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
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
