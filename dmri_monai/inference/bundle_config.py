"""What expressions of a bundle config need to know of the config they stand in."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.spec_history import RENAMED

__all__ = ["check_keys", "check_settings", "current_config", "model_settings"]

CLOSE = 0.85  # 1 is equal; a missing letter in a word of ten gives 0.95
# key of version 0.1 -> what it is now
OLD_KEYS = {
    **{old: new for old, new in RENAMED.items() if old == "too_few"},
    "selection": "monitor",
    "thin": "subsample",
}
DERIVED = ("format_version", "trained_on", "scans", "sha256", "previous_sha256")  # written, never set
OWN_EXPRESSIONS = ("$@bundle_root + '/training'",)  # of the configs that the package writes
PATHS = ("dataset_dir", "output_dir", "checkpoint", "pretrained", "cache_dir", "compare_with")


def current_config() -> dict[str, Any]:
    """The merged configuration, overrides included, of the bundle whose expression calls this function.

    MONAI gives expressions no handle on their parser, so it is looked up among the callers.
    """
    for frame in inspect.stack(context=0):
        parser = frame.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return {k: v for k, v in parser.get().items() if k != parser.meta_key}
    raise RuntimeError("current_config() works only in an expression of a bundle config")


def model_settings(task: str | None = None, pretext: bool = False) -> ModelSpec:
    """The model that the config of the calling expression describes: its keys that are fields of :class:`ModelSpec`.

    What the config does not say has the default of the field.  pretext: the model has no task yet.
    """
    config = current_config()
    fields = [name for name in ModelSpec.model_fields if name not in (*DERIVED, "task")]
    found = {name: config[name] for name in fields if name in config}
    return ModelSpec.of({**found, "task": None if pretext else task}, " in the configuration")


def check_settings() -> None:
    """:func:`check_keys` of the config of the calling expression."""
    check_keys(current_config())


def check_keys(config: Mapping[str, Any]) -> None:
    """ValueError for a setting of `config` that has no effect, or a path that MONAI would change or run.

    MONAI takes `--max_epoch 1` without a word, and trains for the default number of epochs.  A top-level key
    that nothing refers to is refused where its name is close to one that is used, or was one in version 0.1;
    other unused keys are left alone: one overlay serves several configs.
    """
    _check_paths(config)
    text = json.dumps(config, default=str)
    used = {name for name in config if re.search(rf"[@%]{re.escape(name)}\b", text)} | set(
        ModelSpec.model_fields
    )
    for name in sorted(set(config) - used):
        if name in OLD_KEYS:
            raise ValueError(f"the setting {name!r} is called {OLD_KEYS[name]!r} now")
        if near := get_close_matches(name, used, n=1, cutoff=CLOSE):
            raise ValueError(f"the configuration has no use for {name!r}; did you mean {near[0]!r}?")
    if (
        "objective" in config
        and isinstance(config.get("task"), str)
        and config["task"] != config["objective"]["task"]
    ):
        raise ValueError(
            f"task
            is {config['task']!r}, but the objective (loss, metrics) is that of {config['objective']['task']!r}: " f"add configs/tasks/{config['task']}.json to --config_file"
        )


def _check_paths(config: Mapping[str, Any]) -> None:
    """ValueError for a path that MONAI does not take as it is written: it runs $, looks up @, and turns # into ::."""
    for name in PATHS:
        value = config.get(name)
        if not isinstance(value, str) or value in OWN_EXPRESSIONS:
            continue
        if value[:1] in ("$", "@"):
            raise ValueError(f"{name} begins with {value[0]!r}, which MONAI would evaluate: write ./{value}")
        if "::" in value and not Path(value).exists():
            raise ValueError(
                f"{name} is {value.replace('::', '#')!r}: MONAI's command line cannot take a path with #; "
                "`dmri-monai predict` can, and so can a link without it"
            )
