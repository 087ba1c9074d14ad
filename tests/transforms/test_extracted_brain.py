"""A brain that was extracted is filled with tissue; a whole head, in air of 0 or of noise, is left as it is told."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dmri_monai.transforms import FillExtractedBraind, SignalMaskd

SHAPE = (20, 18, 16)
N = 6


def place(radius):
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij"), axis=-1)
    return torch.from_numpy(np.linalg.norm(grid, axis=-1) <= radius)


BRAIN, HEAD, CORE = (
    place(7.0),
    place(8.0),
    place(6.7),
)  # CORE: what a network is sure of in an extracted brain


def scan(there, air=0.0):
    signal = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(0)) + 0.5
    return MetaTensor(torch.where(there, signal, air * signal), affine=torch.eye(4))


def told(where, outside=0.8):
    """Probabilities (4, X, Y, Z): of outside, `outside` off `where`; the second tissue is the likeliest of the rest."""
    rest = torch.tensor([0.2, 0.5, 0.3]).view(3, 1, 1, 1)
    p_outside = torch.where(where, 0.1, outside)[None]
    return torch.cat([p_outside, (1 - p_outside) * rest]).float()


def as_form(values, form):
    return values if form == "probabilities" else values[1:]


def filled(values, image):
    item = SignalMaskd("image")({"image": image, "pred": MetaTensor(values, affine=image.affine)})
    return FillExtractedBraind("pred")(item)


@pytest.mark.parametrize("form", ["probabilities", "fractions"])
def test_every_voxel_of_an_extracted_brain_is_tissue_and_no_other(form):
    values = as_form(told(CORE), form)
    found = filled(values, scan(BRAIN))
    assert found["extracted"] is True
    assert isinstance(found["pred"], MetaTensor)
    tissues = found["pred"][-3:].as_tensor()
    torch.testing.assert_close(tissues.sum(0), BRAIN.float())
    rim = BRAIN & ~CORE
    assert rim.any()
    torch.testing.assert_close(
        tissues[:, rim], torch.tensor([0.2, 0.5, 0.3])[:, None].expand(3, int(rim.sum()))
    )
    if form == "probabilities":
        torch.testing.assert_close(found["pred"][0].as_tensor(), (~BRAIN).float())


@pytest.mark.parametrize("form", ["probabilities", "fractions"])
@pytest.mark.parametrize(
    ("there", "air"),
    [(HEAD, 0.0), (BRAIN, 0.01), (torch.ones(SHAPE).bool(), 0.0)],
    ids=["a head in air of 0", "a brain in noise", "no air at all"],
)
def test_other_scans_are_left_as_they_are_told(form, there, air):
    sure = place(7.0) if there is HEAD else CORE if air else torch.ones(SHAPE).bool()
    values = as_form(told(sure), form)
    found = filled(values, scan(there, air))
    assert found["extracted"] is False
    torch.testing.assert_close(found["pred"].as_tensor(), values, rtol=0, atol=0)


def test_certain_outside_still_becomes_a_tissue():
    """Probabilities that are 0 to a float have no largest: any tissue will do, but none is left."""
    values = told(CORE, outside=1.0)
    found = filled(values, scan(BRAIN))["pred"].as_tensor()
    assert bool(found.isfinite().all())
    assert bool((found.argmax(0) > 0)[BRAIN].all())


def test_signal_in_one_volume_is_signal():
    image = scan(BRAIN)
    image[1:] = 0
    found = SignalMaskd("image")({"image": image})["signal"]
    assert tuple(found.shape) == (1, *SHAPE)
    torch.testing.assert_close(found[0].as_tensor(), BRAIN)


def test_nothing_changes_without_the_map_and_another_grid_is_refused():
    item = {"pred": told(CORE)}
    assert FillExtractedBraind("pred")(item) == item
    with pytest.raises(ValueError, match=r"shape \(20, 18, 15\), expected \(20, 18, 16\)"):
        FillExtractedBraind("pred")({**item, "signal": BRAIN[None, ..., 1:]})
    with pytest.raises(ValueError, match="2 channels"):
        FillExtractedBraind("pred")({"pred": told(CORE)[:2], "signal": BRAIN[None]})


def test_nothing_without_any_signal():
    image = scan(torch.zeros(SHAPE).bool())
    assert filled(told(CORE), image)["extracted"] is False
