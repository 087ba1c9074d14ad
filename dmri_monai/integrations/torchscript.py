"""A trained model as one file of plain convolutions, which runs without this package."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import torch

from dmri_monai.inference.model import load_model
from dmri_monai.inference.spec import spec_path
from dmri_monai.integrations.bundle_metadata import bundle_metadata
from dmri_monai.io.writing import replacing

__all__ = ["export_model"]


def export_model(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the network of `checkpoint` (a model.pt with its model.json, or a released model) as TorchScript to `out`.

    Input and output are those of the network, for any size: harmonic channels or directions (1, C, X, Y, Z), logits.
    The file also holds the model's description, as `model.json`, and its metadata, as MONAI's `ckpt_export` adds them;
    the description beside it has the digest of the exported file.  A full disk leaves no file, unlike there.
    ValueError for the "pq" architecture, which computes its kernels from the table.
    """
    out = Path(out)
    if out.suffix != ".ts":
        raise ValueError(f"TorchScript files end in .ts, got {out}")
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
