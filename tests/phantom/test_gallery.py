"""The gallery: one row per artifact, each of which shows."""

import json

import numpy as np
from PIL import Image

from dmri_monai.phantom.gallery import gallery


def test_gallery_has_a_row_per_artifact_with_a_visible_difference(tmp_path):
    preset = tmp_path / "two.json"
    preset.write_text(
        json.dumps({"artifacts": {"drift": {"fraction": 0.3}, "venetian_blind": {"strength": 0.2}}}),
        encoding="utf-8",
    )
    path = gallery(tmp_path / "out.png", preset=str(preset))
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[0] == 2 * round(1.75 * 80)
    coloured = (picture.max(-1) - picture.min(-1)) > 30
    right = 2 * picture.shape[1] // 3
    for row in np.array_split(coloured, 2):
        assert row[:, right:].mean() > 0.02
        assert row[:, :right].mean() < 0.001
