"""A brain that was extracted is filled with tissue; a whole head, in air of 0 or of noise, is left as it is told."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dmri_monai.transforms import FillExtractedBraind

SHAPE = (20, 18, 16)
MOST_LEFT = 0.15


def place(radius):
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij"), axis=-1)
    return torch.from_numpy(np.linalg.norm(grid, axis=-1) <= radius)


BRAIN, HEAD = place(7.0), place(8.0)
CORE = place(6.7)  # what a network is sure of in an extracted brain


def told(where, outside=0.8):
    """Probabilities (4, X, Y, Z): of outside, `outside` off `where`; the second tissue is the likeliest of the rest."""
    rest = torch.tensor([0.2, 0.5, 0.3]).view(3, 1, 1, 1)
    p_outside = torch.where(where, 0.1, outside)[None]
    return torch.cat([p_outside, (1 - p_outside) * rest]).float()


def as_form(values, form):
    return values if form == "probabilities" else values[1:]


def filled(values, there, most_left=MOST_LEFT):
    item = {"signal": there[None], "pred": MetaTensor(values, affine=torch.eye(4))}
    return FillExtractedBraind("pred", most_left)(item)


@pytest.mark.parametrize("form", ["probabilities", "fractions"])
def test_every_voxel_of_an_extracted_brain_is_tissue_and_no_other(form):
    values = as_form(told(CORE), form)
    found = filled(values, BRAIN)
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
    ("there", "sure"),
    [(HEAD, CORE), (torch.ones(SHAPE).bool(), torch.ones(SHAPE).bool()), (torch.zeros(SHAPE).bool(), CORE)],
    ids=["a head in air", "no air at all", "no signal"],
)
def test_other_scans_are_left_as_they_are_told(form, there, sure):
    values = as_form(told(sure), form)
    found = filled(values, there)
    assert found["extracted"] is False
    torch.testing.assert_close(found["pred"].as_tensor(), values, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["probabilities", "fractions"])
def test_share_that_may_be_left_is_exact(form):
    values, left = as_form(told(CORE), form), int((BRAIN & ~CORE).sum()) / int(BRAIN.sum())
    assert filled(values, BRAIN, left + 1e-6)["extracted"] is True
    assert filled(values, BRAIN, left - 1e-6)["extracted"] is False


@pytest.mark.parametrize(("air", "extracted"), [(0.09, False), (0.11, True)])
def test_a_tenth_of_the_voxels_has_to_be_air(air, extracted):
    there = torch.ones(SHAPE).bool().flatten()
    there[: int(air * there.numel())] = False
    there = there.view(SHAPE)
    assert filled(told(there), there)["extracted"] is extracted


def test_half_of_a_voxel_is_where_fractions_count_as_told():
    """And of probabilities what is largest: outside of 0.4 beside tissues of 0.12, 0.3 and 0.18."""
    values = told(CORE, outside=0.4)
    assert filled(values[1:], BRAIN, 1e-6)["extracted"] is True
    assert filled(values, BRAIN, 1e-6)["extracted"] is False


def test_small_body_apart_is_no_brain_and_a_large_one_is():
    eye, half = torch.zeros(SHAPE).bool(), torch.zeros(SHAPE).bool()
    eye[0:2, 0:2, 0:2] = half[0:2, 0:7, 0:7] = True
    for apart, kept in ((eye, False), (half, True)):
        assert not (apart & BRAIN).any()
        found = filled(told(CORE | apart), BRAIN | apart)["pred"].as_tensor()
        assert bool((found.argmax(0) > 0)[apart].all()) is kept
        assert bool((found.argmax(0) > 0)[BRAIN].all())


def test_certain_outside_still_becomes_a_tissue():
    """Probabilities that are 0 to a float have no largest: any tissue will do, but none is left."""
    values = told(CORE, outside=1.0)
    found = filled(values, BRAIN)["pred"].as_tensor()
    assert bool(found.isfinite().all())
    assert bool((found.argmax(0) > 0)[BRAIN].all())


def test_nothing_changes_without_the_map_and_another_grid_is_refused():
    item = {"pred": told(CORE)}
    assert FillExtractedBraind("pred", MOST_LEFT)(item) == item
    with pytest.raises(ValueError, match=r"shape \(20, 18, 15\), expected \(20, 18, 16\)"):
        FillExtractedBraind("pred", MOST_LEFT)({**item, "signal": BRAIN[None, ..., 1:]})
    with pytest.raises(ValueError, match="2 channels"):
        FillExtractedBraind("pred", MOST_LEFT)({"pred": told(CORE)[:2], "signal": BRAIN[None]})
