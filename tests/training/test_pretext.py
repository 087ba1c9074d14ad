import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from torch.nn.functional import normalize

from dmri_monai.inference.spec import TAKES, ModelSpec
from dmri_monai.training.pretext import PretrainBatch, hide, lower_is_better, pretext_loss
from dmri_monai.training.randomness import derive_seed
from dmri_monai.transforms import ToVoxelFramed, collate_dwi

MODEL = ModelSpec(architecture="plain", shells=[1000.0])


def batch(phase_encoding=None, seeds=(1, 2), directions=20):
    """Two small raw scans, collated."""
    items = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(0)
        n = directions + 2
        bvals = torch.full((n,), 1000.0)
        bvals[:2] = 0
        bvecs = normalize(torch.randn(n, 3, generator=generator), dim=1) * (bvals > 0).unsqueeze(1)
        image = MetaTensor(100 + 50 * torch.rand(n, 10, 12, 8, generator=generator), affine=torch.eye(4) * 2)
        image.affine[3, 3] = 1
        if phase_encoding is not None:
            image.meta["phase_encoding_world"] = torch.tensor(phase_encoding)
        item = {"image": image, "bvals": bvals, "bvecs": bvecs, "item_seed": derive_seed(seed)}
        items.append(ToVoxelFramed("image")(item))
    return collate_dwi(items)


def test_input_of_an_autoencoder_is_its_target():
    image, target = PretrainBatch("autoencoder", MODEL)(batch())
    assert image.shape == (2, 16, 10, 12, 8)
    torch.testing.assert_close(image, target, rtol=0, atol=0)


def test_corruption_is_a_function_of_the_item_seed():
    prepare = PretrainBatch("artifacts", MODEL, corruption="normal")
    image, target = prepare(batch())
    torch.testing.assert_close(prepare(batch())[0], image, rtol=0, atol=0)
    other, _ = prepare(batch(seeds=(1, 3)))
    torch.testing.assert_close(other[0], image[0], rtol=0, atol=0)
    assert (other[1] - image[1]).norm() > 1e-3 * target[1].norm()


def test_phase_encoding_of_the_scan_decides_where_artifacts_go():
    prepare = PretrainBatch("artifacts", MODEL, corruption="strong")
    along_y, target = prepare(batch((0.0, 1.0, 0.0)))
    along_x, _ = prepare(batch((1.0, 0.0, 0.0)))
    assert (along_x - along_y).norm() > 1e-2 * target.norm()


def test_a_scan_is_corrupted_as_alone_whatever_its_neighbour_knows():
    prepare = PretrainBatch("artifacts", MODEL, corruption="strong")
    knowing, other = decollate_batch(batch((1.0, 0.0, 0.0)))[0], decollate_batch(batch(seeds=(1, 3)))[1]
    mixed, _ = prepare(collate_dwi([knowing, other]))
    torch.testing.assert_close(mixed[0], prepare(batch((1.0, 0.0, 0.0)))[0][0], rtol=0, atol=0)
    torch.testing.assert_close(mixed[1], prepare(batch(seeds=(1, 3)))[0][1], rtol=0, atol=0)
    assert (mixed[0] - prepare(batch())[0][0]).norm() > 1e-2 * mixed[0].norm()  # the control: it matters


def test_order_scale_scales_input_and_target():
    plain = PretrainBatch("autoencoder", MODEL.replace(order_scale=None))(batch())[1]
    scaled = PretrainBatch("autoencoder", MODEL.replace(order_scale=[1.0, 3.0, 5.0]))(batch())[1]
    factors = torch.tensor([1.0] * 2 + [3.0] * 5 + [5.0] * 9).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(scaled, plain * factors)


def test_unknown_pretext_names_the_choices():
    with pytest.raises(ValueError, match="pretext is 'denoise', expected one of"):
        PretrainBatch("denoise", MODEL)


@pytest.mark.parametrize(
    ("n", "hidden"), [(64, 19), (30, 9), (20, 5), (16, 1), (15, 4), (12, 4), (7, 1), (6, 2), (2, 1)]
)
def test_what_stays_visible_determines_the_greatest_order_that_leaves_something_to_hide(n, hidden):
    bvals = torch.tensor([0.0] + [1000.0] * n + [0.0, 1000.0])
    valid = torch.ones(n + 3, dtype=torch.bool)
    valid[-2:] = False
    found = hide(bvals, valid, 0.3, l_max=4, seed=0)
    assert int(found.sum()) == hidden
    assert not found[[0, n + 1, n + 2]].any()


@pytest.mark.parametrize("architecture", TAKES)
def test_masking_hides_measurements_of_few_directions_from_every_architecture(architecture):
    model = ModelSpec(architecture=architecture, size="tiny", shells=[1000.0], n_directions=12)
    _, target, *_ = PretrainBatch("masked", model)(batch(directions=15))
    assert target["hidden"].sum(dim=1).tolist() == [4, 4]


@pytest.mark.parametrize("pretext", ["artifacts", "autoencoder", "masked"])
def test_pretext_of_a_network_for_any_protocol_asks_for_the_shells_a_scan_has(pretext):
    model = ModelSpec(architecture="any", slots=2, size="tiny")
    image, target = PretrainBatch(pretext, model)(batch())
    harmonics = target["harmonics"] if pretext == "masked" else target
    assert image.shape[1] == model.in_channels == 63
    assert harmonics.shape[1] == 59  # without b and log n
    presence, absent = harmonics[:, 3:5], harmonics[:, [2, *range(10, 15), *range(24, 33), *range(46, 59)]]
    assert presence[:, 0].unique().tolist() == [1]
    assert presence[:, 1].unique().tolist() == absent.unique().tolist() == [0]
    clean = torch.cat([image[:, :5], image[:, 9:]], dim=1)
    assert ((clean - harmonics).abs().max() < 1e-5) == (pretext == "autoencoder")
    loss, wrong = pretext_loss(pretext, model), harmonics.clone()
    right, wrong[:, 2] = float(loss(harmonics, target)), 9.0
    assert float(loss(wrong, target)) == pytest.approx(right)  # a shell that the scan lacks does not count
    wrong[:, 1] += 1.0
    assert float(loss(wrong, target)) > right + 0.01


def test_deep_supervision_is_refused_for_a_pretext():
    model = ModelSpec(network_options={"deep_supervision": True})
    with pytest.raises(ValueError, match="deep_supervision is for training on labels"):
        pretext_loss("artifacts", model)


def test_any_loss_is_better_than_none():
    assert lower_is_better(0.5, float("nan"))
    assert not lower_is_better(float("nan"), 0.5)
