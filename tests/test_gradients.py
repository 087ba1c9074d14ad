"""Gradient tables: what is accepted, shells, and frames against formulas written out independently."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dmri_monai.gradients import GradientTable, cluster_shells, grid_rotation, q_vectors, unit_vectors

FIXED = settings(derandomize=True, max_examples=100, deadline=None, database=None)


def directions(n: int, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def table_of(n: int = 12) -> GradientTable:
    bvals = torch.full((n,), 1000.0, dtype=torch.float64)
    bvals[0] = 0
    return GradientTable(bvals, directions(n))


def bvals_of_shells(*bvals: float) -> list[int]:
    return [round(shell.bval) for shell in cluster_shells(torch.tensor(bvals, dtype=torch.float64))]


class TestShells:
    @pytest.mark.parametrize(
        ("bvals", "expected"),
        [
            pytest.param((0, 950, 1000, 1050), [1000], id="5-percent-of-1000"),
            pytest.param((0, 1900, 2000, 2100), [2000], id="5-percent-of-2000"),
            pytest.param((0, 2850, 3000, 3150), [3000], id="5-percent-of-3000"),
            pytest.param((0, 250, 300, 350), [300], id="50-of-300"),
            pytest.param((0, 1000, 1020, 1100), [1040], id="spread-1000-to-1100"),
            pytest.param((0, 1000, 1200), [1000, 1200], id="1000-and-1200"),
            pytest.param((0, 700, 1000, 2000), [700, 1000, 2000], id="700-1000-2000"),
            pytest.param((0, 1000, 1107), [1000, 1107], id="just-too-wide"),
            pytest.param((0, 3000, 1000, 3000, 1000), [1000, 3000], id="unsorted"),
        ],
    )
    def test_shells_are_as_wide_as_the_jitter_and_no_wider(self, bvals, expected):
        assert bvals_of_shells(*bvals) == expected

    def test_evenly_spaced_bvals_do_not_chain_into_one_shell(self):
        shells = cluster_shells(torch.arange(1000.0, 2001.0, 40.0))
        assert len(shells) > 5

    def test_a_low_outlier_of_one_shell_does_not_swallow_the_next(self):
        # from 990 alone, 1088 would still be in reach; the gap between the shells decides
        assert bvals_of_shells(990, 1000, 1005, 1010, 1088, 1095, 1100, 1110) == [1001, 1098]

    @pytest.mark.parametrize("b0", [0.0, 5.0, 10.0, 15.0, 42.0, 50.0])
    def test_low_bvals_are_no_shell(self, b0):
        assert bvals_of_shells(b0, 1000, b0) == [1000]

    def test_a_table_of_b0_volumes_has_no_shell(self):
        assert cluster_shells(torch.zeros(3)) == ()

    @FIXED
    @given(st.lists(st.integers(0, 4000), min_size=1, max_size=40), st.randoms(use_true_random=False))
    def test_every_weighted_volume_is_in_exactly_one_shell_whatever_the_order(self, bvals, rng):
        shells = cluster_shells(torch.tensor(bvals))
        members = sorted(i for shell in shells for i in shell.indices.tolist())
        assert members == [i for i, b in enumerate(bvals) if b > 50]
        rng.shuffle(bvals)
        again = cluster_shells(torch.tensor(bvals))
        assert [round(s.bval, 6) for s in again] == [round(s.bval, 6) for s in shells]

    @FIXED
    @given(st.lists(st.integers(51, 4000), min_size=1, max_size=40))
    def test_no_shell_is_wider_than_the_tolerance_and_no_two_neighbours_would_fit_in_one(self, bvals):
        def fits(low, high):
            return (high - low) / 2 <= max(50, 0.05 * (low + high) / 2) + 1e-2

        values = torch.tensor(bvals)
        edges = [(int(values[s.indices].min()), int(values[s.indices].max())) for s in cluster_shells(values)]
        assert all(fits(*edge) for edge in edges)
        assert not any(fits(one[0], other[1]) for one, other in zip(edges, edges[1:], strict=False))


class TestFrames:
    def test_world_vectors_follow_the_written_out_rule_on_every_grid(self, standard_affine):
        fsl = directions(12)
        table = GradientTable.from_fsl(torch.full((12,), 1000.0), fsl, standard_affine)
        # independent of the polar factor: the grids have orthogonal axes, so unit columns are the axes
        matrix = standard_affine[:3, :3].numpy()
        axes = matrix / np.linalg.norm(matrix, axis=0)
        right_handed = np.dot(np.cross(matrix[:, 0], matrix[:, 1]), matrix[:, 2]) > 0
        expected = sum(
            np.outer(fsl[:, k] * (-1 if k == 0 and right_handed else 1), axes[:, k]) for k in range(3)
        )
        np.testing.assert_allclose(table.bvecs.numpy(), expected, atol=1e-12)

    def test_fsl_vectors_return_from_the_world_unchanged(self, standard_affine):
        fsl = directions(12)
        table = GradientTable.from_fsl(torch.full((12,), 1000.0), fsl, standard_affine)
        assert_close(table.to_fsl(standard_affine), fsl, rtol=0, atol=1e-12)

    def test_voxel_vectors_point_where_the_grid_axes_say(self, standard_affine):
        table = table_of()
        voxel = table.in_voxel_frame(standard_affine)
        axes = standard_affine[:3, :3] / standard_affine[:3, :3].norm(dim=0)
        assert_close(torch.einsum("nk,ik->ni", voxel, axes), table.bvecs, rtol=0, atol=1e-12)

    def test_on_a_sheared_grid_the_rotation_is_scipys_polar_factor(self, standard_affine):
        shear = torch.eye(3, dtype=torch.float64)
        shear[0, 1], shear[2, 0] = 0.3, -0.2
        sheared = standard_affine[:3, :3] @ shear
        expected, _ = scipy.linalg.polar(sheared.numpy())
        np.testing.assert_allclose(grid_rotation(sheared).numpy(), expected, atol=1e-12)

    def test_x_flip_leaves_fsl_bvecs_unchanged(self, standard_affine):
        table = table_of()
        flipped = standard_affine @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
        assert_close(table.to_fsl(flipped), table.to_fsl(standard_affine), rtol=0, atol=1e-12)

    def test_y_flip_negates_x_and_y_of_fsl_bvecs(self, standard_affine):
        table = table_of()
        flipped = standard_affine @ torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=torch.float64))
        signs = torch.tensor([-1.0, -1, 1], dtype=torch.float64)
        assert_close(table.to_fsl(flipped), table.to_fsl(standard_affine) * signs, rtol=0, atol=1e-12)

    def test_las_to_ras_alone_cannot_tell_the_sign_rule_from_its_absence(self):
        """Why the standard affines are many: on this pair the flip and the sign of x cancel."""
        las, ras = torch.diag(torch.tensor([-2.0, 2, 2, 1])), torch.diag(torch.tensor([2.0, 2, 2, 1]))
        fsl, bvals = directions(6), torch.full((6,), 1000.0)
        from_las, from_ras = (GradientTable.from_fsl(bvals, fsl, a) for a in (las, ras))
        assert_close(from_las.bvecs, from_ras.bvecs)
        pls = torch.tensor([[0.0, -2, 0, 0], [-2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        assert (GradientTable.from_fsl(bvals, fsl, pls).bvecs - from_las.bvecs).abs().max() > 0.1

    def test_scaling_the_grid_does_not_turn_the_vectors(self):
        table = table_of()
        assert_close(table.in_voxel_frame(torch.diag(torch.tensor([1.7, 1.7, 5, 1]))), table.bvecs)

    @pytest.mark.parametrize(
        ("affine", "match"),
        [
            pytest.param(torch.zeros(4, 4), "singular", id="zero"),
            pytest.param(torch.diag(torch.tensor([2.0, 2, 0, 1])), "singular", id="flat"),
            pytest.param(torch.ones(4, 4), "singular", id="rank-one"),
            pytest.param(torch.full((4, 4), math.nan), "not finite", id="nan"),
            pytest.param(torch.eye(2), r"shape \(2, 2\)", id="shape"),
        ],
    )
    def test_an_impossible_affine_is_refused(self, affine, match):
        with pytest.raises(ValueError, match=match):
            grid_rotation(affine)


class TestQVectors:
    def test_their_length_is_the_root_of_b_over_b_max(self, standard_affine):
        table = GradientTable(torch.tensor([0.0, 750, 3000]), directions(3))
        q = table.q_vectors(standard_affine, b_max=3000)
        assert_close(q.norm(dim=1), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))

    def test_they_lie_along_the_voxel_frame_vectors(self, standard_affine):
        table = table_of()
        q = table.q_vectors(standard_affine, b_max=4000)
        assert_close(q[1:] * 2, table.in_voxel_frame(standard_affine)[1:])

    def test_batches_are_kept(self):
        q = q_vectors(torch.full((2, 5), 1000.0), torch.randn(2, 5, 3), 1000.0)
        assert q.shape == (2, 5, 3)

    @pytest.mark.parametrize("b_max", [0.0, -1.0, math.nan])
    def test_b_max_must_be_positive(self, b_max):
        with pytest.raises(ValueError, match="b_max"):
            table_of().q_vectors(torch.eye(4), b_max)


class TestWhatATableAccepts:
    @pytest.mark.parametrize("b0", [0.0, 5.0, 10.0, 15.0, 42.0])
    def test_b0_volumes_with_unit_vectors_become_zero_vectors(self, b0):
        table = GradientTable(torch.tensor([b0, 1000.0]), directions(2))
        assert table.b0_mask.tolist() == [True, False]
        assert_close(table.bvecs[0], torch.zeros(3, dtype=torch.float64))

    def test_norms_a_few_percent_off_are_normalised_with_one_warning(self):
        lengths = torch.tensor([[1.03], [0.97], [1.049]], dtype=torch.float64)
        with pytest.warns(UserWarning, match="3 of 3 b-vectors renormalised") as record:
            table = GradientTable(torch.full((3,), 1000.0), directions(3) * lengths)
        assert len(record) == 1
        assert_close(table.bvecs, directions(3))

    def test_rounding_is_normalised_silently(self):
        rounded = (directions(30) * 1e4).round() / 1e4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = GradientTable(torch.full((30,), 1000.0), rounded)
        assert_close(table.bvecs.norm(dim=1), torch.ones(30, dtype=torch.float64), rtol=0, atol=1e-12)

    def test_negative_zero_becomes_zero(self):
        table = GradientTable(torch.tensor([-0.0, 1000.0]), torch.tensor([[-0.0, -0.0, -0.0], [1, -0.0, 0]]))
        assert not torch.signbit(table.bvecs).any()
        assert not torch.signbit(table.bvals).any()

    @pytest.mark.parametrize("scale", [0.5, 0.94, 1.06, 2.0])
    def test_other_norms_are_an_error_naming_the_entry_and_the_length(self, scale):
        vectors = directions(3)
        vectors[2] *= scale
        with pytest.raises(ValueError, match=f"b-vector 2 has length {scale:.3f}, expected 1"):
            GradientTable(torch.full((3,), 1000.0), vectors)

    @pytest.mark.parametrize("vector", [0.0, math.nan], ids=["zero", "nan"])
    def test_a_weighted_volume_without_direction_among_others_is_said_to_be_a_trace_volume(self, vector):
        vectors = directions(4)
        vectors[2] = vector
        with pytest.raises(
            ValueError, match=r"zero vector at b = 1000 \(volume 2\): probably .*trace or ADC"
        ):
            GradientTable(torch.tensor([0.0, 1000, 1000, 1000]), vectors)

    def test_a_lowest_b_above_the_threshold_is_named_with_the_threshold_to_give(self):
        vectors, bvals = directions(5), torch.tensor([100.0, 105, 1000, 1000, 1000])
        vectors[:2] = 0
        with pytest.raises(ValueError, match="lowest b is 100, above b0_threshold 50; give b0_threshold=105"):
            GradientTable(bvals, vectors)
        assert GradientTable(bvals, vectors, b0_threshold=105).b0_range == (100, 105)

    def test_volumes_without_direction_a_little_above_the_threshold_may_be_b0(self):
        vectors, bvals = directions(4), torch.tensor([0.0, 60, 1000, 1000])
        vectors[:2] = 0
        with pytest.raises(ValueError, match=r"b = 60 \(volume 1\).*give b0_threshold=60"):
            GradientTable(bvals, vectors)

    def test_a_norm_near_the_root_of_b_gets_the_hint(self):
        with pytest.raises(ValueError, match=r"sqrt\(b/b_max\) = 0.577: the shell seems to be encoded"):
            GradientTable(torch.tensor([3000.0, 1000.0]), directions(2) * torch.tensor([[1.0], [3**-0.5]]))

    def test_a_short_vector_at_the_highest_bval_gets_the_hint_as_well(self):
        with pytest.raises(ValueError, match=r"then b = 1000"):
            GradientTable(torch.tensor([3000.0, 3000.0]), directions(2) * torch.tensor([[1.0], [3**-0.5]]))

    def test_three_nan_are_no_direction_of_a_b0_volume(self):
        vectors = directions(2)
        vectors[0] = math.nan
        assert_close(GradientTable(torch.tensor([0.0, 1000]), vectors).bvecs[0], torch.zeros(3).double())

    @pytest.mark.parametrize(
        ("bvals", "row"),
        [
            pytest.param((0.0, 1000.0), (math.nan, 0.0, 1.0), id="part-nan-b0"),
            pytest.param((0.0, 1000.0), (math.inf, 0.0, 0.0), id="inf-b0"),
        ],
    )
    def test_vectors_that_are_not_finite_are_an_error(self, bvals, row):
        vectors = directions(2)
        vectors[0] = torch.tensor(row)
        with pytest.raises(ValueError, match="b-vector 0 is .*expected finite"):
            GradientTable(torch.tensor(bvals), vectors)

    @pytest.mark.parametrize(
        ("bvals", "match"),
        [
            pytest.param((0.0, -5.0), "b-value 1 is -5, expected at least 0", id="negative"),
            pytest.param((0.0, math.nan), "b-value 1 is nan", id="nan"),
            pytest.param((math.inf, 0.0), "b-value 0 is inf", id="inf"),
            pytest.param((0.0, 1.0, 2.0), r"b-vectors: shape \(2, 3\) for 3 b-values", id="count"),
        ],
    )
    def test_impossible_bvals_are_an_error_naming_the_entry(self, bvals, match):
        with pytest.raises(ValueError, match=match):
            GradientTable(torch.tensor(bvals), directions(2))

    def test_the_source_is_named_in_error_and_warning(self):
        with pytest.raises(ValueError, match=r"in dwi\.bvec"):
            unit_vectors(torch.tensor([1000.0]), torch.tensor([[0.0, 0, 0]]), source="dwi.bvec")
        with pytest.warns(UserWarning, match=r"in dwi\.bvec"):
            unit_vectors(torch.tensor([1000.0]), torch.tensor([[0.0, 0, 1.02]]), source="dwi.bvec")


class TestValueSemantics:
    def test_the_table_does_not_change_with_the_tensors_it_was_made_of(self):
        bvals, bvecs = torch.tensor([1000.0, 2000.0], dtype=torch.float64), directions(2)
        table = GradientTable(bvals, bvecs)
        bvals.zero_(), bvecs.zero_()
        assert table.bvals.tolist() == [1000.0, 2000.0]
        assert_close(table.bvecs, directions(2))

    def test_equal_tables_are_equal_and_hash_alike(self):
        assert table_of() == table_of()
        assert hash(table_of()) == hash(table_of())
        assert table_of() != table_of().select(torch.arange(11))

    def test_selecting_keeps_b0_volumes_and_order(self):
        table = table_of().select(torch.tensor([3, 0]))
        assert table.b0_mask.tolist() == [False, True]
        assert_close(table.bvecs[0], table_of().bvecs[3])

    def test_selecting_by_mask_keeps_what_is_marked(self):
        assert table_of().select(table_of().b0_mask).bvals.tolist() == [0.0]

    @pytest.mark.parametrize(
        ("mask", "error"),
        [
            pytest.param(torch.ones(3, dtype=torch.bool), ValueError, id="short-mask"),
            pytest.param(torch.tensor([12]), ValueError, id="index-too-high"),
            pytest.param(torch.ones(12), TypeError, id="float-mask"),
        ],
    )
    def test_a_wrong_selection_is_refused(self, mask, error):
        with pytest.raises(error):
            table_of().select(mask)

    @pytest.mark.gpu
    def test_a_table_on_the_gpu_works_with_affines_and_masks_of_the_cpu(self):
        cpu = table_of()
        table = GradientTable(cpu.bvals.cuda(), cpu.bvecs)
        assert table.in_voxel_frame(torch.eye(4)).is_cuda
        assert GradientTable.from_fsl(table.bvals, table.to_fsl(torch.eye(4)), torch.eye(4)) == cpu
        assert table.shells()[0].indices.is_cuda
        assert table.select(cpu.b0_mask) == cpu.select(cpu.b0_mask)
        assert table.q_vectors(torch.eye(4), 1000.0).is_cuda


def test_sha256_tells_tables_apart_and_is_the_same_for_equal_ones():
    bvals, bvecs = torch.tensor([0.0, 1000.0]), torch.tensor([[0.0, 0, 0], [0, 0, 1]])
    table = GradientTable(bvals, bvecs)
    assert table.sha256 == GradientTable(bvals.double(), bvecs.double()).sha256
    assert table.sha256 != GradientTable(bvals, -bvecs).sha256
