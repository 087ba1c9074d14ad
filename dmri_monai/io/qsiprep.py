"""QSIPrep's derivatives, recognised by their `dataset_description.json`.

QSIPrep writes LPS+ images with two tables: a `.bvec` along the image's axes without FSL's sign of x (DIPY's reading),
and a `.b` in the scanner frame.  Read by FSL's rule the `.bvec` is mirrored.
Reference: https://github.com/PennLINC/qsiprep/issues/530
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmri_monai.io.bids_names import dataset_levels
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.present import present

__all__ = ["is_from_qsiprep"]

PIPELINES = ("qsiprep", "qsirecon")  # the latter passes preprocessed scans on


def is_from_qsiprep(image: Path) -> bool:
    """Whether the data set of `image` says that QSIPrep made it; the nearest description counts."""
    for folder in reversed(dataset_levels(image.absolute().parent)):
        description = present(folder / "dataset_description.json")
        if description:
            return any(name in PIPELINES for name in _makers(read_json(description)))
    return False


def _makers(description: dict[str, Any]) -> list[str]:
    """Lower-case names under GeneratedBy, or PipelineDescription as before BIDS 1.4."""
    makers = description.get("GeneratedBy")
    entries = makers if isinstance(makers, list) else [makers]
    entries = [*entries, description.get("PipelineDescription")]
    return [str(entry.get("Name", "")).lower() for entry in entries if isinstance(entry, dict)]
