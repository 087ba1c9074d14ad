"""Random artifacts in a dictionary: reproducible, replayable, the same in every orientation, truthful about hits."""

import json
import math

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Orientation

from dmri_monai.artifacts.engine import (
    ARTIFACTS,
    Aliasing,
    BiasField,
    Drift,
    EddyCurrents,
    FatShift,
    Ghost,
    Gibbs,
    GradientNonlinearity,
    HermitianPartialFourier,
    Motion,
    Noise,
    PartialFourier,
    Preset,
    SliceDropout,
    SliceMotion,
    Spike,
    Susceptibility,
    T2StarBlur,
    VenetianBlind,
    Vibration,
    Zipper,
    corrupt,
    ground_truth,
    load_preset,
    replay,
)
from dmri_monai.artifacts.engine.artifact import Artifact
from dmri_monai.gradients import grid_rotation
from dmri_monai.transforms.artifacts import RandDWIArtifactsd
from dmri_monai.transforms.collate import collate_dwi
from tests.conftest import ORIENTATIONS, STANDARD_AFFINES, grid_affine

SHAPE = (16, 20, 12)
EVERYTHING = Preset("everything", tuple(kind(prob=1.0) for kind in ARTIFACTS.values()))


def directions(count):
    """(count, 3) unit vectors spread over the sphere."""
    k = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / count), math.pi * (1 + 5**0.5) * k
    columns = [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    return torch.tensor(np.stack(columns, -1))


def make_item(affine=None, count=30, shape=SHAPE, **meta):
    """Smooth head of Gaussian diffusion on a grid of `affine`, two b0, one shell."""
    affine = grid_affine(ORIENTATIONS["RAS"], (2.0, 2.5, 3.0)) if affine is None else affine
    bvals = torch.cat([torch.zeros(2), torch.full((count,), 1000.0)])
    bvecs = torch.cat([torch.zeros(2, 3, dtype=torch.float64), directions(count)])
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    world = grid.double() @ grid_rotation(affine).T
    head = 1000 * torch.exp(-((world.norm(dim=-1) / 0.8) ** 6)) * (1 + 0.2 * torch.sin(5 * world[..., 0]))
    diffusion = torch.tensor([1.6e-3, 0.4e-3, 0.3e-3], dtype=torch.float64)
    attenuation = torch.exp(-bvals * (bvecs**2 @ diffusion))
    image = (head * attenuation[:, None, None, None]).float()
    return {"image": MetaTensor(image, affine=affine, meta=meta), "bvals": bvals, "bvecs": bvecs.float()}


def run(item, preset, seed=1, **options):
    return RandDWIArtifactsd(preset=preset, **options).set_random_state(seed)(item)


def corrupted_by(item, preset, seed=1):
    image = item["image"]
    q = grid_rotation(image.affine)
    return corrupt(
        image.as_tensor(),
        item["bvals"],
        item["bvecs"].double() @ q,
        affine=image.affine,
        preset=load_preset(preset),
        seed=seed,
        meta=image.meta,
    )


SCANNER = {
    "phase_encoding_world": torch.tensor([0.0, -1.0, 0.0]),
    "slice_world": torch.tensor([0.0, 0.0, 1.0]),
    "total_readout_time_s": 0.06,
    "multiband_factor": 3,
}


@pytest.mark.parametrize("code", ["LPS", "PIR", "ASL"])
@pytest.mark.parametrize(
    "affine", [STANDARD_AFFINES[k] for k in ("LAS-iso2", "RAS-1.7x1.7x5", "PLS-2x2x2.5")]
)
def test_corrupt_then_reorient_equals_reorient_then_corrupt(affine, code):
    item = make_item(affine, **SCANNER)
    turn = Orientation(axcodes=code, labels=None)
    first = turn(run(item, EVERYTHING)["image"])
    second = run(item | {"image": turn(item["image"])}, EVERYTHING)["image"]
    assert float((first - turn(item["image"])).abs().max()) > 100
    torch.testing.assert_close(first.as_tensor(), second.as_tensor(), rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("name", ["oblique-right", "oblique-left"])
def test_reorientation_commutes_on_oblique_grids(name):
    affine = grid_affine(ORIENTATIONS[name], (2.0, 2.0, 2.5))
    item = make_item(affine)
    turn = Orientation(axcodes="LPI", labels=None)
    first = turn(run(item, EVERYTHING)["image"])
    second = run(item | {"image": turn(item["image"])}, EVERYTHING)["image"]
    torch.testing.assert_close(first.as_tensor(), second.as_tensor(), rtol=1e-4, atol=0.05)


def test_array_axes_without_the_affine_would_not_commute():
    """Control: a phase-encoding axis that stays with the array, not with the world, breaks the equality."""
    item = make_item(phase_encoding_world=torch.tensor([1.0, 0.0, 0.0]))
    turn = Orientation(axcodes="ASR", labels=None)
    turned = turn(item["image"])
    turned.meta["phase_encoding_world"] = torch.tensor([0.0, 1.0, 0.0])  # first array axis, now A
    preset = Preset("ghost", (Ghost(phase_deg=15.0),))
    first = turn(run(item, preset)["image"])
    second = run(item | {"image": turned}, preset)["image"]
    assert float((first - second).abs().max()) > 10


def test_replay_from_json_is_bit_exact():
    item = make_item(**SCANNER)
    done = run(item, EVERYTHING)
    again = replay(
        item["image"].as_tensor(),
        item["bvals"],
        item["bvecs"].double() @ grid_rotation(item["image"].affine),
        affine=item["image"].affine,
        record=done["artifacts"],
    )
    torch.testing.assert_close(again, done["image"].as_tensor(), rtol=0, atol=0)


def test_replay_on_another_grid_is_refused():
    item = make_item()
    done = run(item, "light")
    with pytest.raises(ValueError, match="the record's was"):
        replay(
            item["image"].as_tensor()[..., 1:],
            item["bvals"],
            item["bvecs"],
            affine=torch.eye(4),
            record=done["artifacts"],
        )


def test_same_seed_same_result_and_another_seed_another():
    item = make_item()
    first, second, other = (run(item, "all", seed)["image"].as_tensor() for seed in (5, 5, 6))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert float((first - other).abs().max()) > 1


def test_one_artifact_does_not_move_the_draws_of_another():
    item = make_item()
    _, alone = corrupted_by(item, Preset("a", (Spike(),)))
    _, among = corrupted_by(item, Preset("b", (Motion(), Spike(), Noise())))
    drawn = {entry["artifact"]: entry["drawn"] for entry in among["applied"]}
    assert alone["applied"][0]["drawn"] == drawn["spike"]


class Reseeded(Dataset):
    """Randomness as a function of the item, as in training."""

    def __getitem__(self, index):
        self.transform.set_random_state(seed=100 + index)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [1, 2], ids=["one-worker", "two-workers"])
def test_worker_count_does_not_change_the_result(workers):
    items = [make_item(count=12, shape=(8, 9, 6)) for _ in range(3)]
    results = []
    for count in (0, workers):
        data = Reseeded(items, RandDWIArtifactsd(preset="strong"))
        loader = DataLoader(data, batch_size=1, num_workers=count, collate_fn=collate_dwi)
        results.append(torch.cat([batch["image"].as_tensor() for batch in loader]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_pair_shares_frame_and_the_target_is_clean():
    item = make_item(**SCANNER)
    clean = item["image"].as_tensor().clone()
    done = run(item, EVERYTHING)
    torch.testing.assert_close(done["target"].as_tensor(), clean, rtol=0, atol=0)
    torch.testing.assert_close(done["target"].affine, done["image"].affine)
    assert done["image"].shape == done["target"].shape
    assert float((done["image"] - clean).abs().max()) > 1


def test_table_stays_as_acquired():
    item = make_item()
    done = run(item, Motion(rotation_deg=20.0))
    torch.testing.assert_close(done["bvecs"], item["bvecs"], rtol=0, atol=0)
    torch.testing.assert_close(done["bvals"], item["bvals"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "artifact",
    [
        SliceDropout(share=0.1),
        Spike(share=0.05),
        SliceMotion(share=0.3, translation_mm=(4.0, 5.0)),
        Motion(events=1),
    ],
    ids=lambda a: a.name,
)
@pytest.mark.parametrize("name", ["RAS", "PLS", "LAS"])
def test_ground_truth_lists_exactly_the_slices_that_changed(artifact, name):
    item = make_item(
        grid_affine(ORIENTATIONS[name], (2.0, 2.0, 2.0)), slice_world=torch.tensor([0.0, 0.0, -1.0])
    )
    item["image"] += 1.0  # no slice is empty
    done = run(item, artifact)
    axis = int(grid_rotation(item["image"].affine)[2].abs().argmax())
    changed = (
        (done["image"].as_tensor() != done["target"].as_tensor()).movedim(1 + axis, 1).flatten(2).any(-1)
    )
    truth = done["artifacts_slices"][list(ARTIFACTS).index(artifact.name)]
    assert bool(truth.any())
    assert bool((truth == changed).all())


def test_dropout_hits_whole_multiband_sets_of_the_scanner():
    item = make_item(**SCANNER)
    done = run(item, SliceDropout(share=0.02, loss=1.0))
    lost = (done["image"].as_tensor().flatten(1, 2).sum(1) == 0).reshape(len(item["bvals"]), 3, 4)
    assert bool(lost.any())
    assert bool((lost[:, :1] == lost).all())


NOTHING = [
    GradientNonlinearity(largest=0.0),
    Motion(rotation_deg=0.0, translation_mm=0.0),
    SliceMotion(rotation_deg=0.0, translation_mm=0.0),
    Vibration(remaining=1.0),
    SliceDropout(loss=0.0),
    VenetianBlind(strength=0.0),
    BiasField(strength=0.0),
    Drift(fraction=0.0),
    FatShift(strength=0.0),
    Susceptibility(peak_hz=0.0),
    EddyCurrents(linear_voxels=0.0, quadratic_voxels=0.0),
    Aliasing(fraction=0.0),
    HermitianPartialFourier(phase_deg=0.0),
    PartialFourier(fraction=1.0),
    T2StarBlur(t2star_s=math.inf),
    Gibbs(fraction=0.0),
    Ghost(phase_deg=0.0),
    Spike(amplitude=0.0),
    Zipper(amplitude=0.0),
    Noise(snr=math.inf, coils=(1, 16), g_factor=(1.0, 2.0)),
]


def test_every_artifact_has_a_zero_strength():
    assert [a.name for a in NOTHING] == list(ARTIFACTS)


@pytest.mark.parametrize("artifact", NOTHING, ids=lambda a: a.name)
def test_zero_strength_is_the_identity(artifact):
    item = make_item()
    done = run(item, artifact)
    torch.testing.assert_close(done["image"].as_tensor(), item["image"].as_tensor(), rtol=1e-5, atol=1e-3)
    json.loads(done["artifacts"], parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


@pytest.mark.parametrize("kind", ARTIFACTS.values(), ids=lambda k: k.name)
def test_default_strength_changes_the_scan_and_keeps_it_a_magnitude(kind):
    item = make_item()
    done = run(item, kind(prob=1.0), seed=3)["image"].as_tensor()
    assert float((done - item["image"].as_tensor()).abs().max()) > 1.0
    assert bool(done.isfinite().all())
    assert float(done.min()) >= 0


@pytest.mark.parametrize(
    "artifact", [Susceptibility(peak_hz=20.0), Aliasing(fraction=0.5)], ids=lambda a: a.name
)
@pytest.mark.parametrize("axis", [0, 1], ids=["right-left", "anterior-posterior"])
def test_displacement_along_the_world_vector_keeps_the_sum_of_its_lines(artifact, axis):
    world = torch.eye(3)[axis]
    item = make_item(phase_encoding_world=world)
    item["image"][:, [0, 1, 2, -3, -2, -1]] = 0  # nothing leaves the grid
    item["image"][:, :, [0, 1, 2, -3, -2, -1]] = 0
    done = run(item, artifact)
    change = (done["image"] - done["target"]).as_tensor()
    along, across = (change.sum(1 + a).abs().max() / change.abs().sum(1 + a).max() for a in (axis, 1 - axis))
    assert float(along) < 1e-3
    assert float(across) > 0.1


def test_polarity_of_the_scanner_turns_the_distortion():
    shifts = []
    for sign in (1.0, -1.0):
        item = make_item(phase_encoding_world=torch.tensor([0.0, sign, 0.0]), total_readout_time_s=0.05)
        item["field"] = MetaTensor(torch.full((1, *SHAPE), 40.0))
        done = run(item, Susceptibility(), field_map_key="field")["image"].as_tensor()
        shifts.append(done)
    clean = make_item()["image"].as_tensor()
    torch.testing.assert_close(shifts[0][:, :, 2:], clean[:, :, :-2], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(shifts[1][:, :, :-2], clean[:, :, 2:], rtol=1e-4, atol=1e-2)


def test_field_map_of_another_shape_is_refused():
    item = make_item()
    item["field"] = torch.zeros(1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"field_hz has shape \(4, 4, 4\), expected \(16, 20, 12\)"):
        run(item, Susceptibility(), field_map_key="field")


def test_neighbouring_displacements_act_as_one_field():
    item = make_item(**SCANNER)
    both, record = corrupted_by(item, Preset("both", (Susceptibility(), EddyCurrents())))
    parts = [
        corrupted_by(item, Preset("one", (kind,)))[1]["applied"]
        for kind in (Susceptibility(), EddyCurrents())
    ]
    assert record["applied"] == parts[0] + parts[1]
    once = corrupted_by(item, Preset("one", (Susceptibility(),)))[0]
    assert float((both[:2] - once[:2]).abs().max()) < 1e-2  # b0 volumes know no eddy currents
    assert float((both[2:] - once[2:]).abs().max()) > 1


def test_padding_is_left_alone_and_does_not_change_the_rest():
    item = make_item(count=20)
    image, bvals = item["image"].as_tensor(), item["bvals"]
    bvecs = item["bvecs"].double() @ grid_rotation(item["image"].affine)
    options = {"affine": item["image"].affine, "preset": EVERYTHING}
    alone, _ = corrupt(image, bvals, bvecs, seed=9, **options)
    padded = torch.cat([image, torch.zeros(3, *SHAPE)])[None]
    valid = (torch.arange(25) < 22)[None]
    batch, records = corrupt(
        padded,
        torch.cat([bvals, torch.zeros(3)])[None],
        torch.cat([bvecs, torch.zeros(3, 3)])[None],
        seed=[9],
        valid=valid,
        **options,
    )
    torch.testing.assert_close(batch[0, :22], alone, rtol=0, atol=0)
    assert float(batch[0, 22:].abs().max()) == 0
    truth = ground_truth(records[0], item["image"].affine)
    assert truth["noise"].sum(1).tolist() == [12] * 22 + [0] * 3


def test_batch_takes_collated_meta_data():
    batch = collate_dwi([make_item(**SCANNER), make_item(**SCANNER)])
    image = batch["image"]
    _, records = corrupt(
        image.as_tensor(),
        batch["bvals"],
        batch["bvecs"],
        affine=image.affine,
        preset="strong",
        seed=[1, 2],
        valid=batch["valid"],
        meta=image.meta,
    )
    for record in records:
        assert record["acquisition"]["phase_encoding_world"] == [0.0, -1.0, 0.0]
        assert record["acquisition"]["multiband_factor"] == 3


def test_corrupted_items_collate():
    batch = collate_dwi([run(make_item(), "strong", seed) for seed in (1, 2)], image_keys=("image", "target"))
    assert batch["image"].shape == batch["target"].shape == (2, 32, *SHAPE)
    assert [json.loads(record)["preset"] for record in batch["artifacts"]] == ["strong", "strong"]
    assert batch["artifacts_slices"].shape == (2, len(ARTIFACTS), 32, SHAPE[2])


def test_input_tensors_are_not_changed():
    item = make_item()
    before = item["image"].as_tensor().clone()
    out, _ = corrupted_by(item, Preset("none", ()))
    assert out.data_ptr() != item["image"].data_ptr()
    corrupted_by(item, EVERYTHING)
    torch.testing.assert_close(item["image"].as_tensor(), before, rtol=0, atol=0)


def test_probability_zero_gives_the_clean_scan_and_an_empty_record():
    done = run(make_item(), "strong", prob=0.0)
    torch.testing.assert_close(done["image"].as_tensor(), done["target"].as_tensor(), rtol=0, atol=0)
    assert json.loads(done["artifacts"])["applied"] == []
    assert not bool(done["artifacts_slices"].any())


def test_noise_comes_last_and_signal_first():
    names = list(ARTIFACTS)
    assert names[-1] == "noise"
    for early, late in [
        ("motion", "susceptibility"),
        ("bias_field", "eddy_currents"),
        ("eddy_currents", "ghost"),
    ]:
        assert names.index(early) < names.index(late)


@pytest.mark.parametrize("bad", [math.nan, -3.0], ids=["nan", "negative"])
def test_invalid_voxels_are_reported(bad):
    item = make_item()
    item["image"][3, 1, 2, 4] = bad
    with pytest.raises(ValueError, match="1 of 122880 voxels are NaN, infinite or negative"):
        run(item, "light")


def test_invalid_voxels_can_be_zeroed_and_are_counted():
    item = make_item()
    item["image"][3, 1, 2, 4:6] = math.nan
    with pytest.warns(UserWarning, match="2 voxels are NaN"):
        done = run(item, EVERYTHING, invalid="zero")
    assert json.loads(done["artifacts"])["invalid_voxels"] == 2
    assert bool(done["image"].isfinite().all())


def test_harmonics_are_refused():
    item = make_item()
    item["image"].meta["irreps"] = "1x0e"
    with pytest.raises(ValueError, match="holds harmonics"):
        run(item, "light")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(snr=-5.0), "noise: snr is -5.0, allowed are 0.001 to inf"),
        (lambda: SliceDropout(share=(0.1, 1.5)), "slice_dropout: share is"),
        (lambda: Ghost(phase_deg=(9.0, 3.0)), "expected low <= high"),
        (lambda: Ghost(prob=2.0), "ghost: prob is 2.0"),
        (lambda: Ghost(phase_deg="strong"), "expected a number or a pair"),
        (lambda: Preset("twice", (Ghost(), Ghost())), "ghost given twice"),
        (lambda: RandDWIArtifactsd(invalid="ignore"), "invalid is 'ignore'"),
    ],
    ids=["snr", "share", "order", "prob", "type", "twice", "invalid"],
)
def test_bad_ranges_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_phase_encoding_along_the_slices_is_refused():
    item = make_item(phase_encoding_world=torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="share an axis"):
        run(item, "light")


def test_base_class_is_abstract():
    with pytest.raises((NotImplementedError, AttributeError)):
        Artifact().draw(np.random.RandomState(0), None)


def test_number_of_threads_does_not_change_the_result():
    item = make_item(count=12, shape=(61, 67, 43))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(item, EVERYTHING)["image"].as_tensor())
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.gpu
def test_gpu_and_cpu_agree_without_noise():
    quiet = Preset("quiet", tuple(a for a in EVERYTHING.artifacts if a.name not in ("noise", "zipper")))
    item = make_item(**SCANNER)
    bvecs = item["bvecs"].double() @ grid_rotation(item["image"].affine)
    results = [
        corrupt(
            item["image"].as_tensor().to(device),
            item["bvals"],
            bvecs,
            affine=item["image"].affine,
            preset=quiet,
            seed=4,
        )
        for device in ("cpu", "cuda")
    ]
    assert results[0][1]["applied"][1] == results[1][1]["applied"][1]
    torch.testing.assert_close(results[1][0].cpu(), results[0][0], rtol=1e-3, atol=0.5)


def test_volumes_at_100_are_b0_for_every_artifact_where_the_reader_was_told_so():
    item = make_item()
    image, affine = item["image"].as_tensor(), item["image"].affine
    vectors = item["bvecs"].double() @ grid_rotation(affine)

    def corrupted(bvals, **meta):
        return corrupt(image, bvals, vectors, affine=affine, preset=EVERYTHING, seed=3, meta=meta)

    raised = torch.where(item["bvals"] == 0, 100.0, item["bvals"])
    expected, _ = corrupted(item["bvals"])
    found, record = corrupted(raised, b0_threshold=100.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    again = replay(image, raised, vectors, affine=affine, record=json.dumps(record))
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    control, _ = corrupted(raised)
    assert not torch.equal(control, expected)
