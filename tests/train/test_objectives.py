import math

import pytest
import torch

from magicedit.pipelines.heads import FLOW_SCALE, MASK_BIAS, split_head
from magicedit.train.objectives import (
    FLOW_TOLERANCE,
    ComposedWeights,
    Relation,
    add_noise,
    composed_objective,
    min_snr_weights,
    noise_objective,
)

PATCH = 4


def test_add_noise_keeps_the_variance():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 4, 64, 64, generator=generator) for _ in range(2))
    noisy = add_noise(clean, noise, torch.tensor([1.0, 0.5, 0.0]))
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[2], noise[2])
    assert noisy[1].std() == pytest.approx(1.0, abs=0.02)


def test_min_snr_weights_by_hand():
    alphas = torch.tensor([0.5, 0.9, 0.1])  # SNR 1, 9, 1/9
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, "epsilon"), torch.tensor([1.0, 5 / 9, 1.0]))
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, "v_prediction"), torch.tensor([0.5, 0.5, 0.1]))
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, "sample"), torch.tensor([1.0, 5.0, 1 / 9]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_noise_objective_is_zero_for_the_right_answer_only(prediction_type):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    alphas = torch.tensor([0.3, 0.8])
    a = alphas.view(-1, 1, 1, 1)
    right = {"epsilon": noise, "sample": clean, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean}
    assert noise_objective(right[prediction_type], clean, noise, alphas, prediction_type, 5.0) == 0
    assert noise_objective(
        right[prediction_type] + 0.1, clean, noise, alphas, prediction_type
    ) == pytest.approx(0.01, rel=1e-3)


def head(flow=(0.0, 0.0), mask=-20.0, paint=0.0, side=32):
    """Raw output with one flow (pixels), mask logit and colour everywhere."""
    cells = side // PATCH
    raw = torch.zeros(1, 4 * PATCH**2 + 2, cells, cells)
    raw[:, : 3 * PATCH**2] = paint
    raw[:, 3 * PATCH**2 : 4 * PATCH**2] = mask - MASK_BIAS
    raw[:, -2] = flow[0] / (side / 2) / FLOW_SCALE
    raw[:, -1] = flow[1] / (side / 2) / FLOW_SCALE
    return raw


def loss(raw, source, target, relation=None, **weights):
    weights = ComposedWeights(**{"change": 0.0} | weights)
    return composed_objective(raw, source, target, PATCH, weights, relation)


def related(flow=math.nan, mask=math.nan, weight=1.0, side=32):
    """The same known flow, mask and weight everywhere."""
    return Relation(
        torch.full((1, side, side, 2), flow),
        torch.full((1, side, side), mask),
        torch.full((1, side, side), weight),
    )


@pytest.fixture
def ramp():
    """(1, 3, 32, 32): brightness rises to the right by 1/32 a pixel."""
    return (torch.arange(32.0) / 32).expand(1, 3, 32, 32).clone()


def test_composed_objective_understands_flow_in_pixels(ramp):
    """Reading two pixels further right makes a rising ramp brighter by 2/32."""
    target = ramp + 2 / 32
    inner = slice(0, 28)
    exact = loss(head(flow=(2.0, 0.0)), ramp, target).pixels
    copied = loss(head(), ramp, target).pixels
    assert copied == pytest.approx((2 / 32) ** 2, rel=1e-4)
    assert exact < 0.1 * copied  # the right border cannot be read beyond the picture
    assert target[..., inner].shape[-1] == 28


def test_painting_replaces_and_costs(ramp):
    target = torch.full_like(ramp, 0.25)
    painted = loss(head(mask=20.0, paint=0.25), ramp, target, mask=0.1)
    assert painted.pixels == pytest.approx(0, abs=1e-6)
    assert painted.mask == pytest.approx(1, abs=1e-6)
    assert painted.total == pytest.approx(0.1, abs=1e-6)


def test_changed_pixels_weigh_more(ramp):
    target = ramp.clone()
    target[..., :8, :8] += 0.4
    plain = loss(head(), ramp, target).pixels
    weighted = loss(head(), ramp, target, change=8.0).pixels
    assert weighted == pytest.approx(float(plain) * (1 + 8 * 0.4), rel=1e-4)


def test_known_flow_is_compared_where_it_is_known(ramp):
    relation = related()
    assert loss(head(), ramp, ramp, relation, flow=1.0).flow == 0
    relation.flow[:, :16] = torch.tensor([3.0, -1.0])
    part = loss(head(flow=(1.0, -1.0)), ramp, ramp, relation, flow=1.0)
    assert part.flow == pytest.approx(2.0, abs=FLOW_TOLERANCE)  # px
    raw = head().requires_grad_()
    loss(raw, ramp, ramp, relation, flow=1.0).total.backward()
    assert torch.isfinite(raw.grad).all()


def test_a_known_mask_is_learned_and_an_unknown_one_costs(ramp):
    """-log(0.5) where the mask is undecided; paint is free where it is needed."""
    undecided = head(mask=0.0)
    known = loss(undecided, ramp, ramp, related(mask=1.0), known_mask=1.0, mask=9.0)
    assert known.total - known.pixels == pytest.approx(math.log(2), rel=1e-4)
    unknown = loss(undecided, ramp, ramp, related(), known_mask=1.0, mask=9.0)
    assert unknown.total - unknown.pixels == pytest.approx(9 * 0.5, rel=1e-4)
    painted = loss(head(mask=20.0, paint=0.25), ramp, ramp, related(mask=1.0), known_mask=1.0)
    assert painted.total - painted.pixels == pytest.approx(0, abs=1e-5)


def test_pixels_that_cannot_be_compared_do_not_count(ramp):
    target = ramp + 0.5
    assert loss(head(), ramp, target, related(weight=0.0), edges=1.0, change=8.0).total == 0
    assert loss(head(), ramp, target, related(), edges=1.0, change=8.0).total > 0.1


def test_edges_at_the_border_of_what_can_be_compared_do_not_count(ramp):
    target = ramp.clone()
    target[..., :16] += 0.5  # all of the difference, and its edge
    relation = related()
    relation.weight[..., :16] = 0.0
    assert loss(head(), ramp, target, relation, edges=1.0).total == pytest.approx(0, abs=1e-6)
    relation.weight[..., 15] = 1.0
    assert loss(head(), ramp, target, relation, edges=1.0).edges > 0.001


def test_edges_see_blur_that_pixels_hardly_do():
    """A fine grating painted grey: the pixel loss is its variance, the edge loss its steps."""
    target = torch.zeros(1, 3, 32, 32)
    target[..., ::2] = 0.2
    grey = loss(head(mask=20.0, paint=0.1), torch.zeros_like(target), target)
    assert grey.pixels == pytest.approx(0.01, rel=1e-3)
    assert grey.edges == pytest.approx(0.2, rel=1e-3)


def test_a_fine_flow_moves_single_pixels(ramp):
    """Without it the finest movement is that of a patch."""
    raw = torch.cat([head(flow=(2.0, 0.0)), torch.zeros(1, 2 * PATCH**2, 8, 8)], dim=1)
    assert torch.equal(split_head(raw, PATCH).flow, split_head(head(flow=(2.0, 0.0)), PATCH).flow)
    raw[0, -2 * PATCH**2, 3, 5] = 1.0  # x of the first pixel of one patch
    moved = split_head(raw, PATCH).flow - split_head(head(flow=(2.0, 0.0)), PATCH).flow
    assert moved[0, 0, 3 * PATCH, 5 * PATCH] == pytest.approx(FLOW_SCALE)
    assert moved.count_nonzero() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_broken_flows_make_the_loss_non_finite_but_not_the_process(ramp, value):
    """grid_sample's backward pass used to end the process with a segmentation fault here."""
    raw = head(flow=(value, 0.0)).requires_grad_()
    total = loss(raw, ramp, ramp).total
    total.backward()
    assert math.isfinite(total) == math.isfinite(value)
