"""What a model says of one scan, in memory and in files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.leftovers import finish_renames, unfinished
from dmri_monai.io.locking import alone_with
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.writing import replacing, save_nifti
from dmri_monai.scan import Scan
from dmri_monai.tasks.registry import find_task
from dmri_monai.tasks.task import Task

if TYPE_CHECKING:
    from dmri_monai.report import Case

__all__ = ["Prediction", "result_stem"]

MADE_BY = "dmri_monai"
SPREAD = {  # sidecar of an uncertainty
    "Description": "Spread of the predictions for turned copies of the scan, 0 where all agree",
    "Units": "arbitrary",
    "Values": "square root of the variance over the copies, summed over what the network tells of a voxel",
}
OTHERS_S = 60.0  # seconds to wait for another process that writes the same names


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a model says of one scan.

    image: on the scan's grid: class numbers (1, X, Y, Z); peaks (3n, X, Y, Z), x y z per peak in RAS+ world; a fibre
        orientation density (45, X, Y, Z), harmonics in e3nn's convention in RAS+ world; volume fractions (3, X, Y, Z).
    uncertainty: (1, X, Y, Z), or None without an ensemble.
    deviation: by how much overlapping windows disagree, as a part of the prediction; 0 for a whole volume.
    warnings: what about the scan makes the prediction doubtful.
    provenance: hashes of model and gradient table, versions; also in the JSON sidecar.
    files: what was written, by kind; empty until :meth:`write`.
    """

    task: str
    image: MetaTensor
    uncertainty: MetaTensor | None
    deviation: float
    warnings: tuple[str, ...]
    provenance: Mapping[str, Any]
    scan: Scan
    files: Mapping[str, Path]

    def __repr__(self) -> str:
        values = self._task.output.describes(self.class_names)
        notes = [
            f"{n} {word}" for n, word in ((len(self.warnings), "warnings"), (len(self.files), "files")) if n
        ]
        if self.uncertainty is not None:
            notes.insert(0, "uncertainty")
        shown = [f"{self.task} of {self.scan.name}", f"{tuple(self.image.shape)} {values}", *notes]
        return f"Prediction({'; '.join(shown)})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the numbers from 1 on; empty for directions."""
        return self._task.class_names

    @property
    def values(self) -> Tensor:
        """The prediction as it is stored: (X, Y, Z) uint8 class numbers, or (C, X, Y, Z) float32 of anything else; a
        density in MRtrix3's convention.
        """
        return self._task.output.stored(self._plain)

    @cached_property
    def derived(self) -> Mapping[str, Tensor]:
        """Maps that follow from the prediction, by the kind of their file: `peaks` and `npeaks` of a density."""
        return self._task.output.derived(self._plain)

    def peaks(self) -> Tensor:
        """(3n, X, Y, Z) fibre directions, largest first, in RAS+ world, NaN for none; of a density their length is its
        value there.  ValueError for a prediction without directions.
        """
        if not self._task.output.directions:
            raise ValueError(f"a prediction of {self.task} has no directions")
        return self.derived.get("peaks", self._plain)

    def n_fibres(self) -> Tensor:
        """(X, Y, Z) uint8 number of fibre populations.  ValueError for a prediction that does not tell it."""
        if self.task == "crossings":
            return self.values
        if "npeaks" not in self.derived:
            raise ValueError(f"a prediction of {self.task} does not tell the number of fibres")
        return self.derived["npeaks"]

    def write(
        self,
        output_dir: str | os.PathLike[str],
        *,
        name: str | None = None,
        report: bool = False,
        overwrite: bool = False,
    ) -> Prediction:
        """Write the map, what derives from it, and uncertainty, each with a JSON sidecar, and, if wanted, a report: all
        or none of them; `files` names them.

        name: begins the files' names; by default that of the scan without `_dwi`.  What an earlier prediction of the
        same name left and this one has not, goes.  FileExistsError for a file there that no prediction wrote, without
        `overwrite`.
        """
        stem = f"{name or result_stem(self.scan.path)}_{self._task.label}"
        return self.write_to(
            _places(Path(output_dir), stem, self.derived), report=report, overwrite=overwrite
        )

    def write_to(
        self,
        places: Mapping[str, Path],
        *,
        more: Mapping[str, Any] | None = None,
        meaning: Mapping[str, Any] | None = None,
        report: bool = False,
        overwrite: bool = False,
    ) -> Prediction:
        """:meth:`write` under names of one's own, with `more` entries in every sidecar, `meaning` in the prediction's.

        places: paths of "prediction", "sidecar", "uncertainty", "report" and every kind of `derived`, whether they will
            be written or not; the sidecars of the latter lie beside them.
        """
        records = {"prediction": {**self.sidecar, **(more or {}), **(meaning or {})}}
        records |= {kind: {**record, **(more or {})} for kind, record in self._companions.items()}
        maps = ("prediction", "uncertainty", *self._task.output.derived_meaning())
        places = {**{_sidecar_of(kind): _json_beside(places[kind]) for kind in maps}, **places}
        wanted = [name for kind in records for name in (kind, _sidecar_of(kind))]
        files = {kind: places[kind] for kind in [*wanted, *(["report"] if report else [])]}
        stale = [places[kind] for kind in places if kind not in files]
        with alone_with(places["sidecar"], OTHERS_S):
            finish_renames(places["sidecar"].parent)
            _check_ours(places, overwrite)
            self._write_files(files, stale, records)
        return replace(self, files=files)

    def _write_files(
        self, files: Mapping[str, Path], stale: list[Path], records: Mapping[str, Mapping[str, Any]]
    ) -> None:
        maps = {"prediction": self.values, **self.derived}
        if self.uncertainty is not None:
            maps["uncertainty"] = self.uncertainty.as_subclass(Tensor)[0].float().cpu()
        with _replacing(files, stale) as aside:
            for kind, record in records.items():
                save_nifti(aside[kind], maps[kind], self.image.affine, name=files[kind])
                text = json.dumps(record, indent=4, ensure_ascii=False)
                # names of files may hold bytes that are no text
                aside[_sidecar_of(kind)].write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
            if "report" in files:
                self._write_report(aside["report"])

    @property
    def sidecar(self) -> dict[str, Any]:
        """What the JSON sidecar of the map says."""
        return {
            "Task": self.task,
            "Warnings": list(self.warnings),
            **({"WindowDeviation": self.deviation} if self.deviation else {}),
            **self._task.output.meaning(self.class_names),
            **self._origin,
        }

    @property
    def _companions(self) -> dict[str, dict[str, Any]]:
        """Kinds of the maps that are written beside the prediction -> what their JSON sidecars say.

        They have no `Task`, by which the prediction of a task is known.
        """
        told = self._task.output.derived_meaning()
        told |= {} if self.uncertainty is None else {"uncertainty": SPREAD}
        return {kind: {**meaning, **self._origin} for kind, meaning in told.items()}

    @property
    def _origin(self) -> dict[str, Any]:
        made_by = {"Name": MADE_BY, "Version": self.provenance["Versions"][MADE_BY]}
        return {**self.provenance, "GeneratedBy": [made_by]}

    def case(self, truth: Tensor | None = None, metrics: Mapping[str, float] | None = None) -> Case:
        """The prediction as a case of a report, beside a `truth` on the scan's grid where there is one."""
        from dmri_monai.report import Case

        maps = (
            {} if self.uncertainty is None else {"Uncertainty": self.uncertainty.as_subclass(Tensor)[0].cpu()}
        )
        shown = dict(metrics or {})
        if self.deviation:
            shown["Deviation of windows"] = self.deviation
        names = dict(enumerate(self.class_names, start=1))
        found, table = self._task.output.shown(self._plain, self.derived), self.scan.table
        return Case(self.scan.name, self.scan.image, table, found, truth, names, shown, maps)

    def _write_report(self, path: Path) -> None:
        from dmri_monai.report import write_report

        tables = {"Warnings": [{"warning": w} for w in self.warnings]} if self.warnings else {}
        write_report(path, [self.case()], title=self._task.title, tables=tables, provenance=self.provenance)

    @property
    def _task(self) -> Task:
        return find_task(self.task)

    @property
    def _plain(self) -> Tensor:
        return self.image.as_subclass(Tensor).cpu()


def result_stem(path: Path | None) -> str:
    """With what the names of a scan's results begin: "sub-01" for `sub-01_dwi.nii.gz`."""
    return "scan" if path is None else nifti_stem(path).removesuffix("_dwi")


def _places(folder: Path, stem: str, derived: Iterable[str]) -> dict[str, Path]:
    return {
        **{kind: folder / f"{stem}{kind}.nii.gz" for kind in derived},
        "prediction": folder / f"{stem}.nii.gz",
        "sidecar": folder / f"{stem}.json",
        "uncertainty": folder / f"{stem}uncertainty.nii.gz",
        "report": folder / f"{stem}.html",
    }


def _sidecar_of(kind: str) -> str:
    """The kind of the JSON sidecar of a map of `kind`."""
    return "sidecar" if kind == "prediction" else f"{kind} sidecar"


def _json_beside(image: Path) -> Path:
    return image.with_name(f"{nifti_stem(image)}.json")


def _check_ours(places: Mapping[str, Path], overwrite: bool) -> None:
    """FileExistsError for a file that no prediction wrote: most often a label drawn by hand."""
    there = [path for path in places.values() if path.exists() or path.is_symlink()]
    # a prediction on another machine may have been killed between the names of its map and of its sidecar
    if not there or overwrite or unfinished(places["sidecar"]):
        return
    try:
        ours = any(entry.get("Name") == MADE_BY for entry in read_json(places["sidecar"])["GeneratedBy"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{there[0]} exists and was not written by a prediction: choose another folder, or --overwrite it"
        )


@contextmanager
def _replacing(files: Mapping[str, Path], gone: list[Path]) -> Iterator[dict[str, Path]]:
    with replacing(*files.values(), gone=gone) as temporary:
        yield dict(zip(files, temporary, strict=True))
