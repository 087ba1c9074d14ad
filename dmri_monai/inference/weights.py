"""Weights in files: written whole, checked when read, never code."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmri_monai.inference.spec import ModelSpec, spec_path
from dmri_monai.io.present import present
from dmri_monai.io.writing import replacing

__all__ = ["digest_of", "load_weights", "read_weights", "read_whole", "save_model", "save_whole"]

logger = logging.getLogger(__name__)


def save_whole(content: Any, path: Path) -> None:
    """torch.save under a temporary name in the same folder, then rename; OSError when the disk is full."""
    with replacing(path) as (temporary,):
        _save(content, temporary)


def _save(content: Any, temporary: Path) -> None:
    # ignite's and MONAI's savers remove the old file before they write the new one: a kill in between loses both
    with temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch says hides the file's own error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_model(network: nn.Module, path: str | Path, spec: ModelSpec) -> None:
    """Write the weights of `network` to `path` and `spec`, with their digest, beside them, one after the other.

    The description comes first and names the weights it replaces as well, so that a kill between the two leaves a pair
    that can be used.  ValueError for weights that are not finite: nothing is written.
    """
    path = Path(path)
    state = network.state_dict()
    check_finite(state, f"not saved to {path}")
    with replacing(spec_path(path), path) as (record, weights):
        _save(state, weights)
        before = digest_of(path) if path.is_file() and _describes_the_same(path, spec) else None
        digests = {"sha256": digest_of(weights), "previous_sha256": before}
        record.write_text(spec.replace(**digests).text, encoding="utf-8")


def _describes_the_same(path: Path, spec: ModelSpec) -> bool:
    """Whether the weights at `path` fit the description that is about to be written beside them."""
    try:
        old = ModelSpec.load(spec_path(path))
    except (ValueError, OSError):
        return False
    names = ("task", "shells", *ModelSpec.meaning())
    return all(_setting(old, name) == _setting(spec, name) for name in names)


def _setting(spec: ModelSpec, name: str) -> Any:
    """A setting of what the network is; its task is the one it was trained for."""
    return spec.learned or spec.task if name == "task" else getattr(spec, name)


def read_whole(path: str | Path) -> Any:
    """The content of a file that torch wrote, on the CPU.  ValueError naming the file where it is damaged."""
    path = Path(path)
    if present(path) is None:
        raise ValueError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows as nearly any of them
        raise ValueError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from None
    raise ValueError(f"{path} cannot be read as a checkpoint: its part {damaged} is damaged")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in `path`, or the one under "network" of a training's `last.pt`.

    Where `model.json` beside it has the digest of the file, it must agree.  ValueError naming the file, and both
    digests, where the file is damaged, holds no weights, or weights that are not finite.
    """
    path = Path(path)
    if present(path):
        _check_digest(path)
    content = read_whole(path)
    weights = content.get("network", content) if isinstance(content, dict) else {}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no state dict of tensors, nor one as its 'network'")
    check_finite(weights, str(path))
    return weights


def load_weights(network: nn.Module, path: str | Path, spec: ModelSpec | None = None) -> nn.Module:
    """`network` with all the weights of checkpoint `path` (a state dict), which must fit exactly.

    spec: of the network at hand; where the checkpoint has its own beside it, what gives the channels their meaning must
    agree; other b-values of the shells are only warned of.  ValueError naming both sides.
    """
    source = read_weights(path)
    check_same_model(spec, path, ("task", *ModelSpec.meaning()))
    target = network.state_dict()
    check_fit(network, target, source, path)
    unexpected = sorted(set(source) - set(target))
    if unexpected:
        raise ValueError(
            f"{path}: {len(unexpected)} parameters unknown to the network; first {unexpected[0]}"
        )
    network.load_state_dict(source)
    return network


def check_finite(weights: dict[str, Tensor], place: str) -> None:
    """ValueError naming the first of `weights` that holds NaN or infinity, and `place`."""
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise ValueError(f"{bad} of {value.numel()} weights of {name} are not finite: {place}")


def check_same_model(
    spec: ModelSpec | None, path: str | Path, names: tuple[str, ...], but: tuple[str, ...] = ()
) -> None:
    """ValueError where one of the settings `names` differs between `spec` and what stands beside the checkpoint `path`.

    Without a spec, or a description beside the checkpoint, there is nothing to compare.  but: network options that may
    differ.
    """
    if spec is None or present(spec_path(path)) is None:
        return
    theirs = ModelSpec.load(spec_path(path))
    for name in names:
        one, other = (_without(but, _setting(side, name)) for side in (theirs, spec))
        if one != other:
            _refuse(path, name, one, other)
    if spec.takes == "samples" and spec.b_max != theirs.b_max:
        _refuse(path, "b_max", theirs.b_max, spec.b_max)
    if len(theirs.shells) != len(spec.shells):
        _refuse(path, "shells", list(theirs.shells), list(spec.shells))
    if theirs.shells != spec.shells:
        logger.warning(
            "%s was made with shells %s, the configuration has %s",
            path,
            list(theirs.shells),
            list(spec.shells),
        )


def check_fit(
    network: nn.Module, target: dict[str, Tensor], source: dict[str, Tensor], path: str | Path
) -> None:
    """ValueError where `source` lacks a parameter of `target` or has it in another shape, naming both."""
    misfits = [n for n, value in target.items() if n not in source or source[n].shape != value.shape]
    if misfits:
        name = misfits[0]
        theirs = tuple(source[name].shape) if name in source else "missing"
        parts = ", ".join(dict.fromkeys(n.split(".")[0] for n in source)) or "none"
        raise ValueError(
            f"{path} does not fit the {type(network).__name__} in {len(misfits)} of {len(target)} parameters; "
            f"first {name}: network {tuple(target[name].shape)}, checkpoint {theirs}; the checkpoint holds {parts}"
        )


def _without(names: tuple[str, ...], value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in names} if isinstance(value, dict) else value


def _refuse(path: str | Path, name: str, theirs: Any, ours: Any) -> None:
    raise ValueError(f"{path} was made with {name} = {theirs!r}, the configuration says {ours!r}")


def _check_digest(path: Path) -> None:
    record = spec_path(path)
    if path.suffix != ".pt" or present(record) is None:
        return
    spec = ModelSpec.load(record)
    if spec.sha256 is None:
        return
    found = digest_of(path)
    if found not in (spec.sha256, spec.previous_sha256):
        raise ValueError(
            f"{path} is not the file that {record.name} describes, or is damaged: its SHA-256 is {found}, "
            f"expected {spec.sha256}"
        )


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
