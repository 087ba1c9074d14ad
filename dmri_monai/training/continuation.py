"""What the result of a training depends on, so that it is continued with the same inputs alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from dmri_monai.flags import NO_PATH
from dmri_monai.inference.bundle_config import current_config
from dmri_monai.inference.weights import digest_of
from dmri_monai.io.data_record import file_record
from dmri_monai.transforms import LoadDWId

__all__ = ["MAY_CHANGE", "check_same_inputs", "inputs_of", "loader_of"]

Record = dict[str, dict[str, Any]]

# the keys of a config that may be different when a training is continued, and why; every other one may not
MAY_CHANGE = {
    "max_epochs": "goes on for longer, or ends sooner; the learning rate then follows the new length",
    "patience": "counts from the next validation on; with more of it, a training that early stopping had ended goes on",
    "num_workers": "which process loads a scan changes nothing",
    "device": "where it is computed; only on the same device bit for bit",
    "cache_rate": "what is kept in memory changes nothing",
    "cache_dir": "what is kept on disk changes nothing",
    "bundle_root": "a path",
    "dataset_dir": "a path; the scans and tables themselves are compared",
    "output_dir": "a path; the folder may have been moved",
    "mlflow": "tracking changes nothing",
    "study": "tracking changes nothing",
    "registered_model": "tracking changes nothing",
    "tracking": "tracking changes nothing",
    "resume": "how the run begins",
    "overwrite": "how the run begins",
    "imports": "what expressions can name",
    "_desc_": "a comment",
}
FILES = ("pretrained",)  # settings that are paths of files whose content counts
WORDS = {"true": True, "false": False}


def inputs_of(train: Any, val: Any) -> Record:
    """What the result of a training depends on: the settings of the config of the calling expression, and the scans.

    train, val: data sets whose `data` are items with paths of scans and labels.  Of the scans the names and sizes of
    the images and the SHA-256 of gradient tables and JSON sidecars; images are not read.
    """
    return {
        "settings": settings_of(current_config()),
        "scans": {**_scans("train", train), **_scans("val", val)},
    }


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of `config` that shapes the result, by its key as the command line writes it (`train#dataset`)."""
    kept = {key: value for key, value in config.items() if key not in MAY_CHANGE}
    for key in FILES:
        path = kept.get(key)
        if isinstance(path, str) and Path(path).is_file():
            kept[key] = f"SHA-256 {digest_of(Path(path))}"
    flat = dict(_leaves(json.loads(json.dumps(kept, default=lambda value: type(value).__name__))))
    return {**flat, "number of processes": int(idist.get_world_size())}


def check_same_inputs(before: Record, now: Record, path: Path) -> None:
    """ValueError naming the first thing that differs between the training that wrote `path` and this one, and both
    values.
    """
    for kind, what in (("settings", "the setting"), ("scans", "the file")):
        then, today = before[kind], now[kind]
        differ = [key for key in {**then, **today} if then.get(key) != today.get(key)]
        if differ:
            key = differ[0]
            more = f" ({len(differ) - 1} more differ)" if len(differ) > 1 else ""
            raise ValueError(
                f"resume: {path} was trained with {what} {key}: {_shown(then, key)}, "
                f"this run has {_shown(today, key)}{more}; go on with the same, or train anew in another --output_dir"
            )


def _shown(record: Mapping[str, Any], key: str) -> str:
    return repr(record[key]) if key in record else "nothing"


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Name and value of every leaf; lists of plain values are leaves."""
    nested = [v for v in value if isinstance(v, Mapping | list)] if isinstance(value, list) else []
    if (isinstance(value, Mapping) and value) or nested:
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        return [
            leaf for key, part in entries for leaf in _leaves(part, f"{name}#{key}" if name else str(key))
        ]
    return [(name, _plain(value))]


def _plain(value: Any) -> Any:
    """`value` as a config would say it; a command line hands over words as text."""
    if isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    return None if value in NO_PATH else value


def _scans(part: str, dataset: Any) -> dict[str, str]:
    items: Sequence[Any] = getattr(dataset, "data", [])
    load = loader_of(getattr(dataset, "transform", None))
    found: dict[str, str] = {}
    for index, item in enumerate(items if isinstance(items, Sequence) else []):
        if isinstance(item, Mapping):
            paths = load.files({"image": item["image"]})[1:] if load and _is_file(item.get("image")) else []
            found |= {f"{part} {index} {name}": value for name, value in file_record(item, paths).items()}
    return found


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path) and Path(value).is_file()


def loader_of(transform: Any) -> LoadDWId | None:
    """The transform that says which table of a scan is read."""
    parts = getattr(transform, "transforms", [])
    return next((part for part in parts if isinstance(part, LoadDWId)), None)
