"""A trained model as one file of plain convolutions, which runs without this package."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import torch

from dmri_monai.inference.model import load_model
from dmri_monai.inference.spec import ModelSpec, spec_path
from dmri_monai.inference.weights import digest_of
from dmri_monai.integrations.bundle_metadata import bundle_metadata
from dmri_monai.io.writing import replacing

__all__ = ["export_model", "load_exported"]


def export_model(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the network of `checkpoint` (a model.pt with its model.json, or a released model) as TorchScript to `out`.

    Input and output are those of the network, for any size: harmonic channels or directions (1, C, X, Y, Z).
    The file also holds the model's description, as `model.json`, and its metadata, as MONAI's `ckpt_export` adds them;
    the description beside it has the digest of the exported file.  A full disk leaves no file, unlike there.
    ValueError for the "pq" architecture, which computes its kernels from the table; FileExistsError where the file
    beside it would take the place of the description of weights, or of another JSON.
    """
    out = Path(out)
    if out.suffix != ".ts":
        raise ValueError(f"TorchScript files end in .ts, got {out}")
    _check_place(out)
    model = load_model(checkpoint, "cpu")
    if model.spec.takes == "samples":
        raise ValueError(
            f"{model.weights}: {model.spec.architecture!r} cannot be exported, its kernels need the table"
        )
    script = torch.jit.script(model.network)
    described = {"metadata.json": json.dumps(bundle_metadata(model.spec)), "model.json": model.spec.text}
    buffer = io.BytesIO()  # torch.jit.save on a full disk ends the process
    torch.jit.save(script, buffer, _extra_files=described)
    content = buffer.getvalue()
    spec = model.spec.replace(sha256=hashlib.sha256(content).hexdigest(), previous_sha256=None)
    with replacing(spec_path(out), out) as (record, network):
        record.write_text(spec.text, encoding="utf-8")
        network.write_bytes(content)
    return out


def _check_place(out: Path) -> None:
    record, weights = spec_path(out), out.with_suffix(".pt")
    if weights.exists():
        raise FileExistsError(f"{record} describes {weights.name}: choose another name than {out.name}")
    if record.exists():
        try:
            _ = ModelSpec.load(record)
        except ValueError:
            raise FileExistsError(
                f"{record} is no description of a network: give the exported one another name than {out.name}"
            ) from None


def load_exported(path: str | Path, device: str | torch.device = "cpu") -> torch.jit.ScriptModule:
    """The network that :func:`export_model` wrote to `path`, whose SHA-256 must be the one in the JSON beside it.

    FileNotFoundError without one of the two; ValueError naming the file and both digests where it is damaged.
    `torch.jit.load` compares nothing; without this package, compare `sha256sum` with the `sha256` of the JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no exported network {path}")
    expected, found = ModelSpec.load(spec_path(path)).sha256, digest_of(path)
    if found != expected:
        raise ValueError(
            f"{path} is not the file that {spec_path(path).name} describes, or is damaged: its SHA-256 is {found}, "
            f"expected {expected}"
        )
    return torch.jit.load(str(path), map_location=device)
