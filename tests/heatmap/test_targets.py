import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pipeline.heatmap import targets
from pipeline.skeleton import COCO17, H36M17

SIZE = (48, 64)


def somewhere(sigma: float, count: int = 40, seed: int = 0) -> torch.Tensor:
    """Joints at least three deviations inside the heatmap, (1, count, 2)."""
    room = torch.tensor(SIZE) - 1 - 6 * sigma
    unit = torch.rand((1, count, 2), generator=torch.Generator().manual_seed(seed))
    return unit * room + 3 * sigma


def slow_gaussian(x: float, y: float, sigma: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))


def test_a_target_is_a_gaussian_with_peak_one_where_the_joint_is():
    maps = targets.encode_heatmaps(torch.tensor([[[10.0, 20.0], [10.3, 19.6]]]), SIZE, sigma=1.7)
    assert maps.shape == (1, 2, 64, 48)
    assert maps[0, 0, 20, 10] == 1
    np.testing.assert_allclose(maps[0, 1], slow_gaussian(10.3, 19.6, 1.7), atol=1e-6)


@given(st.floats(2, 45), st.floats(2, 61), st.sampled_from([1.0, 2.0, 3.0]))
@settings(max_examples=50, deadline=None)
def test_a_rounded_target_is_a_patch_of_six_sigma_and_one_around_a_cell(x, y, sigma):
    (found,) = targets.encode_heatmaps_rounded(torch.tensor([[[x, y]]]), SIZE, sigma=sigma)[
        0
    ].numpy()
    column, row = (int(v) for v in np.floor(np.float32([x, y]) + np.float32(0.5)))
    expected = slow_gaussian(column, row, sigma)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    expected[np.maximum(np.abs(columns - column), np.abs(rows - row)) > 3 * sigma] = 0
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert ((found > 0) == (expected > 0)).all()


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_decoding_exact_targets_errs_by_a_quarter_cell_at_most(sigma):
    cells = somewhere(sigma)
    found, score = targets.decode_quarter(targets.encode_heatmaps(cells, SIZE, sigma=sigma))
    assert (found - cells).abs().max() <= 0.25 + 1e-5
    assert score.min() > 0.7
    assert score.max() <= 1


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_decoding_rounded_targets_errs_by_half_a_cell_at_most(sigma):
    cells = somewhere(sigma)
    found, _ = targets.decode_quarter(targets.encode_heatmaps_rounded(cells, SIZE, sigma=sigma))
    assert (found - cells).abs().max() <= 0.5 + 1e-5


def test_the_expectation_of_a_low_peak_is_that_of_a_high_one():
    heatmaps = targets.encode_heatmaps(somewhere(2.0), SIZE)
    found, _ = targets.decode_expectation(heatmaps)
    for height in (0.5, 0.2):
        low, score = targets.decode_expectation(height * heatmaps)
        torch.testing.assert_close(low, found, rtol=0, atol=1e-3)
        torch.testing.assert_close(score, height * heatmaps.flatten(-2).amax(-1))


def test_the_expectation_errs_by_a_tenth_of_a_cell_at_most():
    cells = somewhere(2.0)
    found, score = targets.decode_expectation(targets.encode_heatmaps(cells, SIZE))
    assert (found - cells).abs().max() <= 0.1
    torch.testing.assert_close(
        score, targets.decode_quarter(targets.encode_heatmaps(cells, SIZE))[1]
    )


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_dark_finds_the_centre_of_a_gaussian(sigma):
    cells = somewhere(sigma).clamp(min=9, max=38)  # the smoothing reaches 5 cells
    heatmaps = targets.encode_heatmaps(cells, SIZE, sigma=sigma)
    found, score = targets.decode_dark(0.3 * heatmaps)
    assert (found - cells).abs().max() <= 0.02
    torch.testing.assert_close(score, 0.3 * heatmaps.flatten(-2).amax(-1))


def test_dark_is_nearer_to_the_centre_of_a_noisy_gaussian_than_a_quarter_of_a_cell():
    cells = somewhere(2.0).clamp(min=9, max=38)
    heatmaps = targets.encode_heatmaps(cells, SIZE)
    heatmaps += 0.03 * torch.randn(heatmaps.shape, generator=torch.Generator().manual_seed(3))
    errors = [
        (decode(heatmaps)[0] - cells).norm(dim=-1).mean()
        for decode in (targets.decode_dark, targets.decode_quarter)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_dark_solves_for_the_top_of_a_slanted_gaussian():
    x, y = torch.meshgrid(torch.arange(30.0), torch.arange(20.0), indexing="xy")
    x, y = x - 14.3, y - 9.6
    slanted = torch.exp(-0.5 * (x * x / 4 + y * y / 9 + x * y / 9))[None, None]
    found, _ = targets.decode_dark(slanted)
    torch.testing.assert_close(found, torch.tensor([[[14.3, 9.6]]]), rtol=0, atol=0.02)


def test_dark_smooths_like_scipy_and_moves_no_peak_on_the_border_or_of_a_ridge():
    heatmaps = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(1))
    smooth = gaussian_filter(heatmaps, (0, 0, 1.5, 1.5), mode="constant", radius=(0, 0, 5, 5))
    found, _ = targets.decode_dark(heatmaps)
    for b, j in np.ndindex(2, 3):
        y, x = np.unravel_index(smooth[b, j].argmax(), (20, 30))
        assert (found[b, j] - torch.tensor([x, y])).abs().max() <= 1
    corner = torch.zeros(1, 1, 9, 9)
    corner[..., 0, 8] = 1
    assert targets.decode_dark(corner)[0].tolist() == [[[8, 0]]]
    assert targets.decode_dark(torch.zeros(1, 1, 9, 9))[0].tolist() == [[[0, 0]]]
    assert targets.decode_dark(-torch.ones(1, 1, 9, 9))[0].isfinite().all()


def test_the_highest_cell_and_its_higher_neighbours_decide():
    heatmap = torch.zeros(1, 1, 5, 6)
    heatmap[0, 0, 2, 3], heatmap[0, 0, 2, 4], heatmap[0, 0, 1, 3] = 0.8, 0.5, 0.4
    found, score = targets.decode_quarter(heatmap)
    assert found.tolist() == [[[3.25, 1.75]]]
    assert score.item() == pytest.approx(0.8)
    assert targets.decode_argmax(heatmap)[0].tolist() == [[[3, 2]]]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 5), (4, 0), (4, 5)])
def test_a_peak_in_a_corner_stays_there(row, column):
    heatmap = torch.rand(1, 1, 5, 6)
    heatmap[0, 0, row, column] = 2.0
    assert targets.decode_quarter(heatmap)[0].tolist() == [[[column, row]]]


def test_decoding_agrees_with_a_loop_over_joints():
    heatmaps = torch.randn(3, 17, 12, 9, generator=torch.Generator().manual_seed(5))
    found, score = targets.decode_quarter(heatmaps)
    for b, j in np.ndindex(3, 17):
        heat = heatmaps[b, j].numpy()
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        dx = np.sign(heat[y, x + 1] - heat[y, x - 1]) if 0 < x < 8 else 0
        dy = np.sign(heat[y + 1, x] - heat[y - 1, x]) if 0 < y < 11 else 0
        assert found[b, j].tolist() == [x + 0.25 * dx, y + 0.25 * dy]
        assert score[b, j] == heat.max()


@given(st.floats(-100, 400))
@settings(max_examples=50, deadline=None)
def test_cells_and_pixels_map_back_under_either_convention(x):
    pixels = torch.tensor([x], dtype=torch.float64)
    for offset in (targets.EXACT_CELLS, targets.PUBLISHED_CELLS):
        back = targets.to_pixels(targets.to_cells(pixels, offset=offset), offset=offset)
        torch.testing.assert_close(back, pixels, rtol=0, atol=1e-9)


def test_a_cell_lies_in_the_middle_of_its_four_pixels():
    assert targets.to_cells(torch.arange(4, 8).double()).mean() == 1
    assert targets.to_pixels(torch.tensor(0.0)) == 1.5
    assert targets.to_pixels(torch.tensor(3.0), offset=targets.PUBLISHED_CELLS) == 12


def test_joints_whose_gaussian_misses_the_heatmap_are_out_of_reach():
    cells = torch.tensor([[[0.0, 0.0], [-6.1, 5], [53.0, 69.0], [53.1, 5], [torch.nan, 5]]])
    assert targets.is_in_reach(cells, SIZE, sigma=2).tolist() == [[True, False, True, False, False]]


@pytest.mark.parametrize("skeleton", [COCO17, H36M17])
def test_flipping_heatmaps_twice_is_the_identity_and_leaves_the_given_ones(skeleton):
    heatmaps = torch.rand(2, 17, 8, 6)
    before = heatmaps.clone()
    once = targets.flip_back(heatmaps, skeleton.swap)
    assert torch.equal(heatmaps, before)
    assert not torch.equal(once, heatmaps)
    assert torch.equal(targets.flip_back(once, skeleton.swap), heatmaps)


def test_the_target_of_a_mirrored_crop_flips_back_to_the_target():
    pixels = torch.rand(1, 17, 2) * torch.tensor([191.0, 255.0])
    mirrored = pixels.clone()
    mirrored[..., 0] = 191 - mirrored[..., 0]
    mirrored = mirrored[:, list(COCO17.swap)]
    there = targets.encode_heatmaps(targets.to_cells(mirrored), SIZE)
    here = targets.encode_heatmaps(targets.to_cells(pixels), SIZE)
    torch.testing.assert_close(targets.flip_back(there, COCO17.swap), here, rtol=0, atol=1e-4)


def test_flipping_back_moves_published_heatmaps_one_column_to_the_right():
    heatmaps = torch.arange(4.0).expand(1, 17, 2, 4)
    moved = targets.flip_back(heatmaps, COCO17.swap, columns=1)
    assert moved[0, 0, 0].tolist() == [3, 3, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradient_are_those_of_half_the_weighted_mean_square(dtype):
    generator = torch.Generator().manual_seed(1)
    predicted = torch.randn(2, 5, 8, 6, generator=generator).to(dtype).requires_grad_()
    target = torch.rand(2, 5, 8, 6, generator=generator)
    weight = torch.tensor([[1.0, 0, 1, 1, 0.5], [0, 1, 1, 1, 1]])
    loss = targets.heatmap_loss(predicted, target, weight)
    (loss * 3).backward()
    same = predicted.detach().float().requires_grad_()
    scaled = weight[..., None, None]
    expected = 0.5 * torch.nn.functional.mse_loss(same * scaled, target * scaled)
    (expected * 3).backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(predicted.grad, same.grad.to(dtype))


def test_the_loss_is_computed_in_float32_under_autocast():
    predicted, target = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    expected = targets.heatmap_loss(predicted, target, torch.ones(2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert targets.heatmap_loss(predicted, target, torch.ones(2, 3)) == expected


@pytest.mark.parametrize("decode", [targets.decode_expectation, targets.decode_dark])
def test_decoding_is_exact_in_mixed_precision(decode):
    cells = 4 + 40 * torch.rand(4, 17, 2, generator=torch.Generator().manual_seed(0))
    heatmaps = targets.encode_heatmaps(cells, (48, 48))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = decode(heatmaps)
    assert torch.equal(found, decode(heatmaps)[0])


@pytest.mark.parametrize("encode", [targets.encode_heatmaps, targets.encode_heatmaps_rounded])
def test_a_joint_without_a_place_changes_no_gradient(encode):
    predicted, cells = torch.rand(1, 3, 64, 48), somewhere(2.0, 3)
    weight = torch.tensor([[1.0, 0.0, 0.5]])
    gradients = []
    for missing in (0.0, torch.nan):
        leaf = predicted.clone().requires_grad_()
        cells[0, 1] = missing
        targets.heatmap_loss(leaf, encode(cells, SIZE), weight).backward()
        gradients.append(leaf.grad)
    assert gradients[1].isfinite().all()
    assert gradients[1].any()
    assert torch.equal(*gradients)
