"""The parts of a preprocessing that depend on model and task: thinning the table, encoding scan and label."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import MapTransform, SelectItemsd

from dmri_monai.inference.model import Model
from dmri_monai.tasks.tasks import Task
from dmri_monai.transforms import RandDropShelld, RandSubsampleDirectionsd
from dmri_monai.transforms.task_labels import HeadMaskd

__all__ = ["encode", "subsample_measurements"]


def encode(model: Model, task: Task | None = None, keep: Sequence[str] = ()) -> list[MapTransform]:
    """From scan and label on their final grid to the items of a batch: what `model` takes, `label` and `keep`.

    task: prepares the label, for training and validation; None leaves it alone or does without.
    """
    label = task.encode_label() if task is not None else []
    keys = ["image", *(["label"] if task is not None else []), *model.keys, *keep]
    head = [HeadMaskd("image")] if "head" in keep else []
    return [*head, *model.encode(), *label, SelectItemsd(keys)]


def subsample_measurements(
    model: Model, directions: Sequence[int] | int | None = None, drop_shells: float = 0.0
) -> list[MapTransform]:
    """Random choice of measurements, so that one checkpoint serves many tables.

    directions: fewest and most directions a shell, or one number for both; None keeps all.  One b0 volume at least
    stays.  drop_shells: probability of leaving out shells, one always stays; needs missing="zero".
    """
    if not 0 <= drop_shells <= 1:
        raise ValueError(f"drop_shells is {drop_shells}, expected a probability")
    if drop_shells and model.takes == "harmonics" and model.missing != "zero":
        raise ValueError(f"drop_shells = {drop_shells} needs missing='zero', got missing={model.missing!r}")
    chosen: list[MapTransform] = []
    if directions is not None:
        fewest, most = (directions, directions) if isinstance(directions, int) else directions
        chosen.append(RandSubsampleDirectionsd("image", prob=1.0, directions=(fewest, most)))
    if drop_shells:
        chosen.append(RandDropShelld("image", prob=drop_shells))
    return chosen
