"""Predictions for a whole study: a BIDS folder in, BIDS derivatives out, one scan after the other."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.inference.ensemble import Group
from dmri_monai.inference.model import TrainedModel, load_model, predict_all
from dmri_monai.inference.study_files import (
    is_done,
    made_by,
    meaning,
    places_of,
    relative_to,
    sources_digest,
    write_description,
)
from dmri_monai.inference.study_pages import page_of, write_study_index, write_subject_page
from dmri_monai.io.locking import locked
from dmri_monai.scan import Scan
from dmri_monai.signals import end_on_sigterm
from dmri_monai.warning_lines import show_warning_lines, tell_warning

__all__ = ["StudyOptions", "own_share", "predict_study"]

logger = logging.getLogger(__name__)

KILLED = (
    "out of memory: one of {} processes was killed; try fewer --workers or `--window 64 64 64`, "
    "then go on with --resume"
)


@dataclass(frozen=True)
class StudyOptions:
    """How a study is predicted.

    models: names of released models, or paths of weights.  device, ensemble, window: as of :func:`load_model` and
    :meth:`TrainedModel.predict`.  workers: processes on this machine.  resume: scans whose prediction by the same
    weights, of the same files and under the same options, is there are passed over.  overwrite: replace files that no
    prediction wrote.  reports: one HTML page per subject.  reader: options of :func:`dmri_monai.io.read_dwi`.
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

    @property
    def record(self) -> dict[str, Any]:
        """The options on which a prediction depends beside its scan and model, as its sidecar has them."""
        reading = {"bvecs": "auto", "b0_threshold": B0_THRESHOLD, **self.reader}
        return {**reading, "ensemble": self.ensemble}


@dataclass(frozen=True)
class Outcome:
    """What became of one scan: "predicted", "resumed" or "failed", and the message of its error or its warnings."""

    scan: str
    status: str
    messages: tuple[str, ...] = ()


def own_share(items: Sequence[Any], environment: Mapping[str, str] | None = None) -> list[Any]:
    """Every n-th of `items` for one of n processes: of torchrun (RANK, WORLD_SIZE) or a SLURM array; else all of them.

    ValueError for an array with gaps.

    >>> own_share("abcde", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "2"})
    ['b', 'd']
    """
    first, step = _share(os.environ if environment is None else environment)
    return list(items)[first::step]


def _share(known: Mapping[str, str]) -> tuple[int, int]:
    """Number of this process, from 0, and how many there are.

    ValueError for an array with gaps (`--array=3,7`): nothing tells which of its tasks this one is.
    """
    if "RANK" in known and "WORLD_SIZE" in known:
        return int(known["RANK"]), int(known["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_ID" not in known or "SLURM_ARRAY_TASK_COUNT" not in known:
        return 0, 1
    own, count = int(known["SLURM_ARRAY_TASK_ID"]), int(known["SLURM_ARRAY_TASK_COUNT"])
    least, step = int(known.get("SLURM_ARRAY_TASK_MIN", "0")), int(known.get("SLURM_ARRAY_TASK_STEP", "1"))
    last = least + step * (count - 1)
    greatest = int(known.get("SLURM_ARRAY_TASK_MAX", last))
    if not last <= greatest < last + step or own not in range(least, last + 1, step):
        raise ValueError(
            f"task {own} of a SLURM array of {count} that does not run from {least} to {last} by {step}: its share of "
            "the study is not known; start an array without gaps, such as --array=0-9, with --resume, or, where each "
            "task has a study of its own, unset SLURM_ARRAY_TASK_ID"
        )
    return (own - least) // step, count


def predict_study(
    items: Sequence[Mapping[str, Any]], source: Path, out: Path, options: StudyOptions
) -> list[Outcome]:
    """Predict the scans of `items` (each with `image`, and `subject` where known) of the data set `source` into `out`.

    Every map is written with its sidecar, whole or not at all; a scan that fails is reported, and the others are done.
    A page per subject and `index.html` show what is there, also from other processes and earlier runs.  Models are
    loaded once per process; ValueError or OSError before any work where one of them cannot be used, or another study
    is being written to `out`.
    """
    share = _share(os.environ)
    tasks = [load_model(name, "cpu").task.name for name in options.models]
    _check_apart(items, source, out)
    subjects = _by_subject(items, source, out)
    with locked(out, "a study", share):
        write_description(out, source)
        own = own_share(subjects)
        if share[1] > 1:
            logger.warning(
                "process %d of %d: %d of %d subjects", share[0] + 1, share[1], len(own), len(subjects)
            )
        outcomes = list(_outcomes(own, source, out, options))
        scans = [Path(item["image"]) for item in items]
        failed = {o.scan: "; ".join(o.messages) for o in outcomes if o.status == "failed"}
        write_study_index(out, source, scans, tasks, failed)
    return outcomes


def _outcomes(
    subjects: Sequence[list[dict[str, Any]]], source: Path, out: Path, options: StudyOptions
) -> Iterator[Outcome]:
    """The scans one subject after the other, with a progress bar."""
    with tqdm(total=sum(map(len, subjects)), desc="scans", unit="scan", smoothing=0.1) as bar:
        if options.workers <= 1:
            models = _load(options)
            for group in subjects:
                yield from _shown(bar, _predict_subject(group, source, out, options, models))
        else:
            yield from _parallel(subjects, source, out, options, bar)


def _parallel(
    subjects: Sequence[list[dict[str, Any]]], source: Path, out: Path, options: StudyOptions, bar: Any
) -> Iterator[Outcome]:
    """The subjects in processes of their own, which end with this one.

    MemoryError where one of them is killed from outside, which a lack of memory does.
    """
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.workers, context, _start_worker, (options,)) as pool:
        waiting = [pool.submit(_work, group, source, out, options) for group in subjects]
        try:
            for done in as_completed(waiting):
                yield from _shown(bar, done.result())
        except BrokenProcessPool:
            raise MemoryError(KILLED.format(options.workers)) from None
        except BaseException:  # such as Ctrl-C: leaving the pool would wait for all the scans
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise


def _shown(bar: Any, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        bar.update()
        for message in outcome.messages:
            if outcome.status == "failed":
                tqdm.write(f"failed: {outcome.scan}: {message}", file=sys.stderr)
            else:
                tell_warning(f"{outcome.scan}: {message}")
        yield outcome


_models: list[TrainedModel] = []  # of a worker process


def _start_worker(options: StudyOptions) -> None:
    end_on_sigterm()
    show_warning_lines()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))
    _models.extend(_load(options))


def _work(group: list[dict[str, Any]], source: Path, out: Path, options: StudyOptions) -> list[Outcome]:
    return list(_predict_subject(group, source, out, options, _models))


def _load(options: StudyOptions) -> list[TrainedModel]:
    return [load_model(name, options.device) for name in options.models]


def _check_apart(items: Sequence[Mapping[str, Any]], source: Path, out: Path) -> None:
    """ValueError naming two scans whose predictions would have one name."""
    taken: dict[Path, Path] = {}
    for path in (Path(item["image"]) for item in items):
        place = places_of(path, source, out, "tissue")["prediction"]
        if (other := taken.setdefault(place, path)) != path:
            raise ValueError(f"{other} and {path} would both be predicted as {place}: rename one")


def _by_subject(items: Sequence[Mapping[str, Any]], source: Path, out: Path) -> list[list[dict[str, Any]]]:
    """The scans that share a page."""
    groups: dict[Path, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(page_of(Path(item["image"]), source, out), []).append(dict(item))
    return list(groups.values())


def _predict_subject(
    group: list[dict[str, Any]],
    source: Path,
    out: Path,
    options: StudyOptions,
    models: Sequence[TrainedModel],
) -> Iterator[Outcome]:
    """What became of each scan as soon as it is known; their page is written after the last."""
    paths, outcomes = [Path(item["image"]) for item in group], []
    for path in paths:
        outcomes.append(_predict_scan(path, source, out, options, models))
        yield outcomes[-1]
    page = page_of(paths[0], source, out)
    new = any(outcome.status == "predicted" for outcome in outcomes)
    # a run may have been killed between the last map and its page
    if options.reports and (new or not page.is_file()):
        shown = [path for path, done in zip(paths, outcomes, strict=True) if done.status != "failed"]
        try:
            write_subject_page(shown, source, out, options.reader)
        except (ValueError, OSError, MemoryError) as error:  # the maps are there, and the next subject waits
            logger.warning("no page for %s: %s", page.stem, error)


def _predict_scan(
    path: Path, source: Path, out: Path, options: StudyOptions, models: Sequence[TrainedModel]
) -> Outcome:
    places = {model.task.name: places_of(path, source, out, model.task.name) for model in models}
    try:
        made = options.record
        if options.resume and all(is_done(places[m.task.name], path, m, made) for m in models):
            return Outcome(str(path), "resumed")
        scan = Scan.read(path, **options.reader)
        uri = f"bids:raw:{relative_to(path, source)}"
        digest = sources_digest(path, made["bvecs"])
        sources = {"Sources": [uri], "SourcesSHA256": digest, "Options": made}
        warnings: dict[str, None] = {}
        found_all = predict_all(models, scan, ensemble=options.ensemble, window=options.window)
        for model, found in zip(models, found_all, strict=True):
            more = {**sources, **made_by(found.provenance["Model"])}
            task = model.task.name
            found.write_to(places[task], more=more, meaning=meaning(task, uri), overwrite=options.overwrite)
            warnings |= dict.fromkeys(found.warnings)
        return Outcome(str(path), "predicted", tuple(warnings))
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        logger.debug("failed: %s", path, exc_info=True)
        return Outcome(str(path), "failed", (" ".join(str(error).split()) or type(error).__name__,))
