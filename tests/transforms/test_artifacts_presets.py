"""Presets: shipped, editable, ordered by strength, and clear about mistakes."""

import json

import pytest
import torch

from dmri_monai.artifacts.engine import (
    ARTIFACTS,
    Ghost,
    Noise,
    Preset,
    corrupt,
    describe_presets,
    load_preset,
    preset_files,
)

NAMES = ["all", "light", "normal", "strong"]


def test_four_presets_are_shipped():
    assert sorted(preset_files()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_preset_covers_every_artifact_in_physical_order(name):
    preset = load_preset(name)
    assert [artifact.name for artifact in preset.artifacts] == list(ARTIFACTS)
    assert "our own choice" in preset.description


@pytest.mark.parametrize("name", list(ARTIFACTS))
def test_all_spans_the_strengths_of_the_others(name):
    index = list(ARTIFACTS).index(name)
    wide = load_preset("all").artifacts[index]
    for other in ("light", "normal", "strong"):
        narrow = load_preset(other).artifacts[index]
        for field in wide.bounds:
            low, high = getattr(wide, field)
            assert low <= getattr(narrow, field)[0]
            assert high >= getattr(narrow, field)[1]


def test_presets_differ_in_the_damage_they_do():
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (20, 24, 16)], indexing="ij")
    head = 1000 * torch.exp(-(((axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2) / 0.6) ** 3))
    image = head.expand(10, 20, 24, 16) * torch.tensor([1.0] + [0.5] * 9).view(-1, 1, 1, 1)
    bvals = torch.tensor([0.0] + [1000.0] * 9)
    bvecs = torch.nn.functional.normalize(
        torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    damage = {}
    for name in ("light", "normal", "strong"):
        changes = [
            (
                corrupt(
                    image, bvals, bvecs, affine=torch.diag(torch.tensor([3.0, 3, 3, 1])), preset=name, seed=s
                )[0]
                - image
            )
            for s in range(12)
        ]
        damage[name] = float(torch.stack(changes).square().mean())
    assert damage["light"] < damage["normal"] < damage["strong"]


def test_edited_file_is_used(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"artifacts": {"noise": {"prob": 1.0, "snr": 12}, "ghost": {"phase_deg": [1, 2]}}}),
        encoding="utf-8",
    )
    preset = load_preset(str(path))
    assert preset == Preset("mine", (Ghost(phase_deg=(1, 2)), Noise(snr=12)))


def test_preset_can_be_given_in_place():
    preset = load_preset({"artifacts": {"noise": {"snr": [5, 6]}}})
    assert preset.artifacts == (Noise(snr=(5, 6)),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON: .*bad.json"),
        ("[]", "expected an object in .*bad.json"),
        ('{"artifacts": []}', 'expected an object "artifacts" in .*bad.json'),
        (
            '{"artifacts": {"blur": {}}}',
            "unknown artifact 'blur' in .*bad.json; known: gradient_nonlinearity",
        ),
        (
            '{"artifacts": {"ghost": {"phase": 3}}}',
            "ghost: unknown phase in .*bad.json; known: phase_deg, prob",
        ),
        (
            '{"artifacts": {"ghost": {"phase_deg": 120}}}',
            "phase_deg is 120, allowed are 0 to 90 in .*bad.json",
        ),
        ('{"artifacts": {"ghost": 3}}', "ghost: expected an object of parameters in .*bad.json"),
        ('{"artifacts": {"noise": {"snr": -1}}}', "noise: snr is -1, allowed are 0.001 to inf in .*bad.json"),
        (
            '{"artifacts": {"noise": {"snr": null}}}',
            "snr is None, expected a number or a pair .* in .*bad.json",
        ),
    ],
    ids=[
        "syntax",
        "list",
        "no-artifacts",
        "artifact",
        "parameter",
        "range",
        "number",
        "negative-snr",
        "null",
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_preset(str(path))


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="preset is 'heavy', expected one of all, light, normal, strong"):
        load_preset("heavy")


def test_description_prints_every_artifact_of_every_preset():
    text = describe_presets()
    for name in NAMES:
        assert f"{name}: " in text
    for artifact in ARTIFACTS:
        assert text.count(f"  {artifact} ") == 4
