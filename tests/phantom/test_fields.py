import numpy as np
import torch

from dmri_monai.phantom.fields import SmoothField, Warp, stage_rng

POINTS = torch.from_numpy(np.random.default_rng(1).uniform(-50, 50, (300, 3)))


def test_stages_of_one_seed_draw_independently():
    assert stage_rng(3, "anatomy").random() == stage_rng(3, "anatomy").random()
    assert stage_rng(3, "anatomy").random() != stage_rng(3, "noise").random()
    assert stage_rng((3, 1), "noise").random() != stage_rng((3, 2), "noise").random()


def test_jacobian_of_a_field_is_its_derivative():
    field = SmoothField.draw(np.random.default_rng(0), n_waves=5, wavelength_mm=(20.0, 50.0), channels=3)
    step = 1e-5
    for axis in range(3):
        offset = torch.zeros(3, dtype=torch.float64)
        offset[axis] = step
        numeric = (field(POINTS + offset) - field(POINTS - offset)) / (2 * step)
        torch.testing.assert_close(field.jacobian(POINTS)[:, :, axis], numeric, rtol=1e-4, atol=1e-6)


def test_warp_keeps_its_orientation_everywhere():
    warp = Warp.draw(np.random.default_rng(0))
    gradient = warp.displacement.jacobian(POINTS) + torch.eye(3)
    assert float(torch.linalg.det(gradient).min()) > 0.1


def test_directions_turn_with_the_warp_as_short_steps_do():
    warp = Warp.draw(np.random.default_rng(0))
    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, -1.0]]).double())
    world = warp.directions_to_world(POINTS, direction.expand(len(POINTS), 1, 3))[:, 0]
    moved = warp.to_template(POINTS + 1e-4 * world) - warp.to_template(POINTS - 1e-4 * world)
    cosine = torch.nn.functional.normalize(moved) @ direction[0]
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-6)
