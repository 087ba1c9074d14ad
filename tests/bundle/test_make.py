"""`bundle/models/make.py`: trained networks as models of their tasks."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.networks.voxelwise import VoxelwiseNet
from dmri_monai.phantom.voxel_signals import draw_batch
from dmri_monai.training.checkpoint import load_pretrained

PATH = Path(__file__).parents[2] / "bundle" / "models" / "make.py"
NETWORK = {"channels": 2, "scalars": 6, "hidden": 4, "blocks": 1}


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("bundle_models_make", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_state(network):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.2 if value.requires_grad else value
        for name, value in network.state_dict(keep_vars=True).items()
    }


@pytest.mark.parametrize("deconvolution", [False, True])
def test_density_is_that_of_the_voxelwise_network(make, deconvolution):
    torch.manual_seed(0)
    options = {**NETWORK, "deconvolution": deconvolution}
    own = VoxelwiseNet(**options).eval()
    network = make.density_network({"network": options, "model": own.state_dict()}).eval()
    image = draw_batch(3, 1, 512, rescaled=deconvolution).channels.view(1, -1, 8, 8, 8)
    with torch.no_grad():
        found, expected = network(image), own(image)
        learned, _ = own.learned(image.flatten(2))
    if deconvolution:  # its share is a fit, too
        off = (found[:, 1:] - expected[:, 1:45]).square().mean()
        without = (
            ((1 - make.DECONVOLVED) * learned[:, 1:45].view_as(found[:, 1:]) - expected[:, 1:45])
            .square()
            .mean()
        )
        assert off < 0.02 * without
    else:
        assert_close(found[:, 1:], expected[:, 1:45])
    # degree 0 is a fit
    assert (found[:, 0] - expected[:, 0]).abs().mean() < 0.5 * expected[:, 0].std()


@pytest.mark.parametrize("task", ["tissue", "fractions"])
def test_released_descriptions_say_what_would_be_made(make, task):
    released = ModelSpec.load(PATH.with_name(f"{task}.json"))
    assert released.replace(sha256=None) == make.heads_spec(task, {"size": "small"})
    assert released.body_mm == make.BODY_MM


@pytest.mark.parametrize(("task", "order"), [("tissue", [0, 1, 2, 3]), ("fractions", [1, 2, 3, 0])])
def test_answers_come_in_the_order_of_the_task(make, task, order):
    spec = make.heads_spec(task, {"size": "tiny"})
    trained = build_network(spec)
    state = random_state(trained)
    trained.load_state_dict(state)
    image = draw_batch(3, 1, 32 * 16**2, l_max=spec.l_max).channels.view(1, -1, 32, 16, 16)
    with torch.no_grad():
        found, expected = make.heads_network(spec, state).train()(image), trained.train()(image)[:, order]
    outside = order.index(0)
    assert spec.network_options["outside"] == outside
    if task == "tissue":
        expected[:, outside] += make.OUTSIDE
    assert_close(found, expected)
    assert (expected.std(dim=(0, 2, 3, 4)) > 1e-3).all()


@pytest.mark.parametrize(("task", "order"), [("tissue", [3, 0, 1, 2]), ("fractions", [0, 1, 2, 3])])
def test_voxelwise_answers_are_the_fractions_of_the_voxelwise_network(make, task, order):
    torch.manual_seed(0)
    own = VoxelwiseNet(**NETWORK, deconvolution=True).eval()
    options = {**NETWORK, "deconvolution": True}
    network = make.fractions_network(make.density_spec(options, task), own.state_dict()).eval()
    image = draw_batch(3, 1, 512, rescaled=True).channels.view(1, -1, 8, 8, 8)
    signal = (image[:, 1:5] != 0).any(1)  # air is computed once
    with torch.no_grad():
        found, expected = network(image).softmax(1), own(image)[:, 45:][:, order]
    assert_close(found.movedim(1, -1)[signal], expected.movedim(1, -1)[signal], atol=1e-5, rtol=1e-4)
    assert (expected.std(dim=(0, 2, 3, 4)) > 1e-3).all()


def test_neighbours_count_by_the_strength_that_was_chosen(make):
    spec = make.density_spec({**NETWORK, "deconvolution": True, "neighbours": 1})
    trained = build_network(spec).state_dict()
    weaker = make.fod_network(spec, trained, 0.25)
    layer = weaker.neighbours[0]
    assert_close(layer.level.exp(), 0.25 * trained["neighbours.0.level"].exp())
    assert_close(layer.query.weight, trained["neighbours.0.query.weight"])


def test_a_network_goes_on_from_weights_with_or_without_neighbours(make, tmp_path):
    options = {**NETWORK, "deconvolution": True}
    specs = {n: make.density_spec({**options, "neighbours": n} if n else options) for n in (0, 1)}
    for n, spec in specs.items():
        torch.manual_seed(n)
        make.save_model(build_network(spec), tmp_path / f"{n}.pt", spec)
    tissue = make.density_spec(options, "tissue")
    for spec, source in ((specs[1], 0), (specs[0], 1), (tissue, 1), (specs[1], 1)):
        network = load_pretrained(build_network(spec), tmp_path / f"{source}.pt", spec)
        trained = torch.load(tmp_path / f"{source}.pt", weights_only=True)
        same = [name for name in network.state_dict() if name in trained and not name.startswith("head.")]
        assert any(name.startswith("neighbours.") for name in same) == (spec is specs[1] and source == 1)
        for name in same:
            assert_close(network.state_dict()[name], trained[name])
