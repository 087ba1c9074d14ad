"""A trained model as one file of plain convolutions, which runs without this package."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import nn

from dmri_monai.inference.model import ARCHITECTURES
from dmri_monai.inference.predictor import bundle_folder, config_settings, settings_of
from dmri_monai.io.writing import replacing
from dmri_monai.training.checkpoint import load_weights

__all__ = ["export_model"]


def export_model(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the network of `checkpoint` (a model.pt with its model.json) as TorchScript for any size; returns `out`.

    Input and output are those of the network: harmonic channels or directions (1, C, X, Y, Z), logits.  The file also
    holds the settings, as `model.json`, and the bundle's `metadata.json`, as MONAI's `ckpt_export` adds it; unlike
    that, a full disk leaves no file.  ValueError for the "pq" architecture, which computes its kernels from the table.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    settings = settings_of(checkpoint)
    if ARCHITECTURES[settings["architecture"]] == "samples":
        raise ValueError(
            f"{checkpoint}: {settings['architecture']!r} cannot be exported, its kernels need the table"
        )
    if out.suffix != ".ts":
        raise ValueError(f"TorchScript files end in .ts, got {out}")
    configs = bundle_folder() / "configs"
    parser = ConfigParser(json.loads((configs / "inference.json").read_text()) | config_settings(settings))
    network: nn.Module = parser.get_parsed_content("network_def")
    script = torch.jit.script(load_weights(network, checkpoint, settings).eval())
    described = {"metadata.json": (configs / "metadata.json").read_text(), "model.json": json.dumps(settings)}
    buffer = io.BytesIO()  # torch.jit.save on a full disk ends the process
    torch.jit.save(script, buffer, _extra_files=described)
    with replacing(out) as (temporary,):
        temporary.write_bytes(buffer.getvalue())
    return out
