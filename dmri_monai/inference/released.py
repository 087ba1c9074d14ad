"""The bundle that comes with the package, and the models released in it."""

from __future__ import annotations

from pathlib import Path

from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.present import present

__all__ = ["FOR_BLOCKS", "bundle_folder", "find_weights", "released_models", "released_tasks"]

PACKAGE = Path(__file__).parents[1]
# A wheel carries the bundle inside the package; in a checkout it stands beside it.
FOLDERS = (PACKAGE / "bundle", PACKAGE.parent / "bundle")

# where a scan is a block without the shape of a head, surroundings mislead: the same tasks, voxel by voxel
FOR_BLOCKS = {"tissue": "tissue-voxelwise", "fractions": "fractions-voxelwise"}


def bundle_folder() -> Path:
    """The bundle that came with the package; FileNotFoundError when it is missing."""
    for folder in FOLDERS:
        if (folder / "configs" / "inference.json").is_file():
            return folder
    raise FileNotFoundError(f"no bundle in {' or '.join(map(str, FOLDERS))}")


def released_models() -> dict[str, Path]:
    """Name -> weights of the models that came with the package; none where no bundle came with it."""
    paths = sorted(path for folder in FOLDERS[::-1] for path in (folder / "models").glob("*.pt"))
    return {path.stem: path for path in paths}


def released_tasks() -> list[str]:
    """Names of the released models that are called like their task, one a task."""
    models = released_models().items()
    return [name for name, path in models if read_json(path.with_suffix(".json"))["task"] == name]


def find_weights(name_or_path: str | Path) -> Path:
    """The weights of a released model by its name, else the path itself.

    FileNotFoundError where there is neither, naming the models there are.
    """
    if isinstance(name_or_path, str) and (path := released_models().get(name_or_path)):
        return path
    path = Path(name_or_path)
    if present(path) is None:
        known = ", ".join(released_models()) or "there are none"
        raise FileNotFoundError(f"{path} does not exist, and is none of the released models ({known})")
    return path
