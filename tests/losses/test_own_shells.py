"""Hidden measurements of scans with different shells in one batch."""

import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.losses import MaskedReconstructionLoss, OwnShellsReconstructionLoss, SignalReconstructionLoss
from dmri_monai.qspace.shell_set import shell_channels, shell_set

SLOTS, L_MAX = 3, 4


def scans(*protocols):
    """Batch of scans with shells of 20 directions each; pred (B, C, ...): the harmonics of their own shells."""
    generator = torch.Generator().manual_seed(0)
    longest = 2 + 20 * max(map(len, protocols))
    target = {key: [] for key in ("image", "bvals", "bvecs_voxel", "valid", "hidden")}
    pred = []
    for shells in protocols:
        bvals = torch.tensor([0.0, 0.0, *(b for b in shells for _ in range(20))])
        bvecs = normalize(torch.randn(len(bvals), 3, generator=generator), dim=1) * (bvals > 0).unsqueeze(1)
        image = 100 * torch.exp(-bvals * (0.3e-3 + 0.8e-3 * bvecs[:, 0].square()))[:, None, None, None]
        image = image.expand(-1, 3, 4, 5) * (1 + 0.1 * torch.rand(1, 3, 4, 5, generator=generator))
        channels = shell_channels(image, bvals, shell_set(bvals, bvecs, slots=SLOTS, l_max=L_MAX))
        pred.append(torch.cat([channels[: 1 + 2 * SLOTS], channels[1 + 4 * SLOTS :]]))
        gap = longest - len(bvals)
        hidden = torch.arange(longest) % 3 == 0
        for key, value in zip(target, (image, bvals, bvecs), strict=False):
            target[key].append(torch.cat([value, value.new_zeros(gap, *value.shape[1:])]))
        target["valid"].append(torch.arange(longest) < len(bvals))
        target["hidden"].append(hidden & target["valid"][-1])
    return torch.stack(pred), {key: torch.stack(values) for key, values in target.items()}


def test_one_scan_is_judged_as_by_the_loss_of_named_shells():
    pred, target = scans([700.0, 2500.0])
    named = MaskedReconstructionLoss(SignalReconstructionLoss([700.0, 2500.0], L_MAX, b0_weight=0.0))
    without = [i for i in range(pred.shape[1]) if i not in (3, 4, 5, 6, *range(17, 22), *range(40, 49))]
    shifted = pred + 0.1 * torch.randn(pred.shape, generator=torch.Generator().manual_seed(1))
    assert_close(
        OwnShellsReconstructionLoss(SLOTS, L_MAX)(shifted, target), named(shifted[:, without], target)
    )


def test_every_scan_of_a_batch_is_judged_at_its_own_shells():
    pred, target = scans([700.0], [1000.0, 2000.0, 3000.0])
    loss = OwnShellsReconstructionLoss(SLOTS, L_MAX)
    assert float(loss(pred, target)) < 1e-4
    assert float(loss(pred.flip(0), target)) > 1e-2  # the control: shells of the other scan


def test_more_shells_than_slots_are_judged_at_the_nearest():
    pred, target = scans([700.0, 1500.0, 1800.0, 3000.0])
    assert float(OwnShellsReconstructionLoss(SLOTS, L_MAX)(pred, target)) < 1e-2
