"""Predictions for a whole study: a BIDS folder in, BIDS derivatives out, one scan after the other."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dmri_monai
from dmri_monai.inference.ensemble import Group
from dmri_monai.inference.model import TrainedModel, load_model
from dmri_monai.inference.result import result_stem
from dmri_monai.inference.weights import digest_of
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.locking import locked
from dmri_monai.io.writing import replacing
from dmri_monai.report import write_report
from dmri_monai.report.index import IndexRow, write_index
from dmri_monai.scan import Scan
from dmri_monai.transforms import LoadDWId

__all__ = ["StudyOptions", "own_share", "predict_study"]

logger = logging.getLogger(__name__)

BIDS_VERSION = "1.10.0"
# how the maps are called: entities and suffix after those of the scan (BIDS derivatives, and BEP016 for diffusion
# models)
NAMES = {
    "tissue": "desc-tissue_dseg",
    "lesion": "label-lesion_mask",
    "crossings": "model-dmrimonai_param-fibrecount_dwimap",
    "orientation": "model-dmrimonai_param-direction_dwimap",
}
UNITS = {"tissue": "class numbers", "lesion": "0 or 1", "crossings": "number of fibre populations"}


@dataclass(frozen=True)
class StudyOptions:
    """How a study is predicted.

    models: names of released models, or paths of weights.  device, ensemble, window: as of :func:`load_model` and
    :meth:`TrainedModel.predict`.  workers: processes on this machine.  resume: scans whose prediction by the same
    weights of the same gradient table is there are passed over.  reports: one HTML page per subject.
    """

    models: Sequence[str] = ("tissue",)
    device: str | None = None
    ensemble: Group | None = None
    window: tuple[int, int, int] | None = None
    workers: int = 1
    resume: bool = False
    overwrite: bool = False
    reports: bool = True
    reader: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one scan: "predicted", "resumed" or "failed", and the message of its error or its warnings."""

    scan: str
    status: str
    messages: tuple[str, ...] = ()


def own_share(items: Sequence[Any], environment: Mapping[str, str] | None = None) -> list[Any]:
    """Every n-th of `items` for one of n processes: of torchrun (RANK, WORLD_SIZE) or a SLURM array; else all of them.

    >>> own_share("abcde", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "2"})
    ['b', 'd']
    """
    first, step = _share(os.environ if environment is None else environment)
    return list(items)[first::step]


def _share(known: Mapping[str, str]) -> tuple[int, int]:
    """Number of this process, from 0, and how many there are."""
    if "RANK" in known and "WORLD_SIZE" in known:
        return int(known["RANK"]), int(known["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_ID" in known and "SLURM_ARRAY_TASK_COUNT" in known:
        first = int(known["SLURM_ARRAY_TASK_ID"]) - int(known.get("SLURM_ARRAY_TASK_MIN", "0"))
        return first, int(known["SLURM_ARRAY_TASK_COUNT"])
    return 0, 1


def predict_study(
    items: Sequence[Mapping[str, Any]], source: Path, out: Path, options: StudyOptions
) -> list[Outcome]:
    """Predict the scans of `items` (each with `image`, and `subject` where known) of the data set `source` into `out`.

    Every map is written with its sidecar, whole or not at all; a scan that fails is reported, and the others are done.
    A page per subject and `index.html` show what is there, also from other processes and earlier runs.  Models are
    loaded once per process; ValueError or OSError before any work where one of them cannot be used, or another study
    is being written to `out`.
    """
    for name in options.models:
        _ = load_model(name, "cpu").task
    with locked(out, "a study", _share(os.environ)):
        _write_description(out, source)
        todo = own_share([dict(item) for item in items])
        outcomes = list(_outcomes(todo, source, out, options))
        write_index(out / "index.html", _index_rows(out, outcomes), title=f"Predictions of {source.name}")
    return outcomes


def _outcomes(
    items: Sequence[dict[str, Any]], source: Path, out: Path, options: StudyOptions
) -> Iterator[Outcome]:
    """The scans one subject after the other, with a progress bar."""
    subjects = _by_subject(items)
    bar = tqdm(total=len(items), desc="scans", unit="scan", smoothing=0.1)
    if options.workers <= 1:
        models = _load(options)
        for group in subjects:
            yield from _shown(bar, _predict_subject(group, source, out, options, models))
        bar.close()
        return
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.workers, context, _start_worker, (options,)) as pool:
        waiting = [pool.submit(_work, group, source, out, options) for group in subjects]
        for done in as_completed(waiting):
            yield from _shown(bar, done.result())
    bar.close()


def _shown(bar: Any, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        bar.update()
        for message in outcome.messages:
            tqdm.write(f"{outcome.status}: {outcome.scan}: {message}")
        yield outcome


_models: list[TrainedModel] = []  # of a worker process


def _start_worker(options: StudyOptions) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))
    _models.extend(_load(options))


def _work(group: list[dict[str, Any]], source: Path, out: Path, options: StudyOptions) -> list[Outcome]:
    return _predict_subject(group, source, out, options, _models)


def _load(options: StudyOptions) -> list[TrainedModel]:
    return [load_model(name, options.device) for name in options.models]


def _by_subject(items: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(str(item.get("subject") or result_stem(Path(item["image"]))), []).append(item)
    return list(groups.values())


def _predict_subject(
    group: list[dict[str, Any]],
    source: Path,
    out: Path,
    options: StudyOptions,
    models: Sequence[TrainedModel],
) -> list[Outcome]:
    outcomes, cases, tables = [], [], []
    for item in group:
        path = Path(item["image"])
        places = {model.task.name: _places(path, source, out, model.task.name) for model in models}
        try:
            if options.resume and all(_is_done(places[m.task.name], path, m) for m in models):
                outcomes.append(Outcome(str(path), "resumed"))
                continue
            scan = Scan.read(path, **options.reader)
            sources = {
                "Sources": [f"bids:raw:{_relative(path, source)}"],
                "SourcesSHA256": _sources_digest(path),
            }
            warnings: dict[str, None] = {}
            for model in models:
                found = model.predict(scan, ensemble=options.ensemble, window=options.window)
                more = {**sources, **_meaning(model.task.name)}
                overwrite = options.overwrite or options.resume
                found.write_to(places[model.task.name], more=more, overwrite=overwrite)
                warnings |= dict.fromkeys(found.warnings)
                cases.append(found.case())
                tables += [{"scan": path.name, "task": model.task.name, "warning": w} for w in found.warnings]
            outcomes.append(Outcome(str(path), "predicted", tuple(warnings)))
        except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
            logger.debug("failed: %s", path, exc_info=True)
            message = " ".join(str(error).split()) or type(error).__name__
            outcomes.append(Outcome(str(path), "failed", (message,)))
    if cases and options.reports:
        name = _subject_of(group[0])
        shown = {"Warnings": tables} if tables else {}
        write_report(out / f"{name}.html", cases, title=f"Predictions of {name}", tables=shown)
    return outcomes


def _subject_of(item: Mapping[str, Any]) -> str:
    stem = result_stem(Path(item["image"]))
    first = stem.split("_")[0]
    return first if first.startswith("sub-") else str(item.get("subject") or stem)


def _relative(path: Path, source: Path) -> str:
    try:
        return path.resolve().relative_to(source.resolve()).as_posix()
    except ValueError:
        return path.name


def _places(path: Path, source: Path, out: Path, task: str) -> dict[str, Path]:
    """Where the files of one prediction go: the folder of the scan below `out`, under BIDS names."""
    folder = out / Path(_relative(path, source)).parent
    stem = f"{result_stem(path)}_{NAMES[task]}"
    spread = f"{result_stem(path)}_model-dmrimonai_param-{task}spread_dwimap"
    return {
        "prediction": folder / f"{stem}.nii.gz",
        "sidecar": folder / f"{stem}.json",
        "uncertainty": folder / f"{spread}.nii.gz",
        "report": folder / f"{stem}.html",
    }


def _meaning(task: str) -> dict[str, Any]:
    if task in UNITS:
        return {"Units": UNITS[task]}
    return {"Units": "arbitrary", "OrientationEncoding": {"Type": "3vector", "Reference": "scanner (RAS+)"}}


def _is_done(places: Mapping[str, Path], scan: Path, model: TrainedModel) -> bool:
    """Whether the prediction of `scan` by these weights is there, whole."""
    if not (places["prediction"].is_file() and places["sidecar"].is_file()):
        return False
    try:
        record = read_json(places["sidecar"])
    except ValueError:
        return False
    weights = model.spec.sha256 or digest_of(model.weights)
    return record.get("ModelSHA256") == weights and record.get("SourcesSHA256") == _sources_digest(scan)


def _sources_digest(scan: Path) -> str:
    """SHA-256 of the digests of everything `scan` is read from: image, gradient table, JSON sidecars."""
    digests = [digest_of(path) for path in LoadDWId("image").files({"image": scan})]
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()


def _write_description(out: Path, source: Path) -> None:
    """`dataset_description.json` of the derivatives; ValueError where another tool's data set lies in the folder."""
    path = out / "dataset_description.json"
    if path.is_file():
        makers = read_json(path).get("GeneratedBy") or []
        if not any(isinstance(m, dict) and m.get("Name") == "dmri_monai" for m in makers):
            raise ValueError(f"{path} was not written by dmri_monai: choose a folder of its own")
    content = {
        "Name": f"Predictions of {source.name} by dmri_monai",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "dmri_monai", "Version": dmri_monai.__version__}],
        "SourceDatasets": [{"URL": source.resolve().as_uri()}],
        "DatasetLinks": {"raw": source.resolve().as_uri()},
    }
    with replacing(path) as (temporary,):
        temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _index_rows(out: Path, outcomes: Sequence[Outcome]) -> list[IndexRow]:
    """One row for each map in `out`, and for each scan that failed in this run."""
    rows = [
        IndexRow(Path(outcome.scan).name, "", "failed", outcome.messages, None)
        for outcome in outcomes
        if outcome.status == "failed"
    ]
    for sidecar in sorted(out.rglob("*.json")):
        record = read_json(sidecar) if sidecar.with_suffix(".nii.gz").is_file() else {}
        if "ModelSHA256" in record:
            page = out / f"{result_stem(sidecar.with_suffix('.nii.gz')).split('_')[0]}.html"
            link = page.name if page.is_file() else None
            warnings = tuple(map(str, record.get("Warnings", [])))
            rows.append(
                IndexRow(str(record.get("Scan")), str(record.get("Task")), "predicted", warnings, link)
            )
    return rows
