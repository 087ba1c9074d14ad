"""What expressions of a bundle config need to know of the config they stand in."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from dmri_monai.flags import NO_PATH
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.spec_history import RENAMED
from dmri_monai.inference.spec_limits import EVALUATED

__all__ = ["check_keys", "check_model", "check_path", "check_settings", "current_config", "model_settings"]

CLOSE = 0.85  # 1 is equal; a missing letter in a word of ten gives 0.95
# key of version 0.1 -> what it is now
OLD_KEYS = {
    **{old: new for old, new in RENAMED.items() if old == "too_few"},
    "selection": "monitor",
    "thin": "subsample",
}
# written, never set
DERIVED = (
    "format_version",
    "learned",
    "trained_on",
    "scans",
    "sha256",
    "previous_sha256",
)
OWN_MEANING = ("task", "subsample_directions")  # in these configs: which model, and an experiment
NAMED_SHELLS = ("shells", "shell_tolerance", "order_scale")  # without a meaning for a scan's own shells
PUBLISHED = "$@bundle_root + '/training'"  # the output_dir of a bundle for a label server
HANDLER = "dmri_monai.training.Checkpoint"  # what train.json and pretrain.json call `checkpoint`
PATHS = (
    "bundle_root",
    "dataset_dir",
    "output_dir",
    "checkpoint",
    "pretrained",
    "cache_dir",
    "compare_with",
)
ADVICE = (
    "write a number as ./100307, and give a link to a path with #, which `dmri-monai predict` takes as it is"
)


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
    if "architecture" not in found and ModelSpec().takes == "shell-set":
        for name in (n for n in NAMED_SHELLS if n in found):
            raise ValueError(
                f"{name} is set, but the default architecture {ModelSpec().architecture!r} takes the shells of each "
                f"scan, whatever they are: leave {name} out, or set architecture to 'equivariant', which has named ones"
            )
    return ModelSpec.of({**found, "task": None if pretext else task}, " in the configuration")


def check_model(spec: ModelSpec) -> None:
    """ValueError where the config of the calling expression says something else of a trained model than its own `spec`.

    Inference and evaluation read all settings of a model from beside its weights; another one would have no effect.
    """
    config = current_config()
    for name in (n for n in ModelSpec.model_fields if n in config and n not in (*DERIVED, *OWN_MEANING)):
        given = ModelSpec.of({**spec.model_dump(), name: config[name]}, " in the configuration")
        ours, theirs = getattr(given, name), getattr(spec, name)
        if ours != theirs:
            raise ValueError(f"the model was made with {name} = {theirs!r}, the configuration says {ours!r}")
    if "objective" in config:
        _check_objective({"task": spec.learned or spec.task, "objective": config["objective"]})


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
    _check_objective(config)


def _check_objective(config: Mapping[str, Any]) -> None:
    """ValueError for a `task` whose loss and metrics are not those of the config's objective."""
    task, objective = config.get("task"), config.get("objective")
    if isinstance(task, str) and isinstance(objective, Mapping) and task != objective["task"]:
        raise ValueError(
            f"task is {task!r}, but the objective (loss, metrics) is that of {objective['task']!r}: "
            f"add configs/tasks/{task}.json to --config_file, or choose that task"
        )


def _check_paths(config: Mapping[str, Any]) -> None:
    for name in PATHS:
        value, typed = config.get(name), _typed(name)
        if value is None and typed is not None and typed.lower() not in NO_PATH:
            check_path(name, value, typed)
        if value is not None and not (typed is None and _is_own(value)):
            check_path(name, value, typed)


def check_path(name: str, value: Any, typed: str | None = None) -> None:
    """ValueError, by its true name, for a path that MONAI would not take as it was written.

    Its parser runs a text that begins with $, looks one with @ up, replaces one with % by a part of a config, and turns
    # into ::.  Its command line, besides, cuts words off at # and makes numbers and lists of them.
    value: of the setting `name`, as the parser has it.  typed: what stands on the command line, if it is there.
    """
    true = value if typed is None else typed
    if isinstance(true, str) and true[:1] in EVALUATED and true:
        raise ValueError(f"{name} begins with {true[0]!r}, which MONAI would evaluate: write ./{true}")
    if typed is not None and typed not in (value, f"'{value}'", f'"{value}"'):
        raise ValueError(f"{name} is {typed!r}, of which MONAI's command line makes {value!r}: {ADVICE}")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, expected a path: {ADVICE}")
    if typed is None and "::" in value and not Path(value).exists():
        raise ValueError(f"{name} is {value.replace('::', '#')!r}, of which MONAI makes {value!r}: {ADVICE}")


def _is_own(value: Any) -> bool:
    """Whether `value` stands in place of a path in the configs that come with the package."""
    return value == PUBLISHED or (isinstance(value, Mapping) and value.get("_target_") == HANDLER)


def _typed(name: str) -> str | None:
    """What stands after the option `name` on the command line of this process; None without it."""
    found = None
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option.startswith("-") and option.lstrip("-").replace("-", "_") == name:
            found = value if equals else following
    return found
