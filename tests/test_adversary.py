"""Saliency, selection and PGD against hand-computed cases and the properties that they promise."""

import math

import pytest
import torch

from carl_hf.adversary import pgd_perturbation, select_salient_tokens


@pytest.mark.parametrize("count", [0, 1, 5, 9, 10, 11, 20, 30, 70, 110])
def test_selection_takes_the_top_tenth_of_the_eligible_tokens(count):
    saliency = torch.rand(1, 128, generator=torch.Generator().manual_seed(count))
    eligible = torch.zeros(1, 128, dtype=torch.bool)
    eligible[0, 1 : 1 + count] = True
    chosen = select_salient_tokens(saliency, eligible, fraction=0.1)
    expected = 0 if count == 0 else max(1, -(-count // 10))
    assert chosen.sum() == expected and not (chosen & ~eligible).any()
    best = saliency[0, 1 : 1 + count].sort(descending=True).values[:expected]
    torch.testing.assert_close(saliency[chosen].sort(descending=True).values, best)


def test_selection_survives_nan_and_refuses_a_bad_fraction():
    eligible = torch.ones(1, 4, dtype=torch.bool)
    chosen = select_salient_tokens(torch.tensor([[math.nan, 2.0, 1.0, math.nan]]), eligible, fraction=0.5)
    assert chosen.tolist() == [[False, True, True, False]]
    with pytest.raises(ValueError, match="fraction"):
        select_salient_tokens(torch.zeros(1, 4), eligible, fraction=0.0)


def quadratic(centre):
    return lambda e: -((e - centre) ** 2).sum()


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_perturbation_keeps_its_promises(relative, steps, dtype):
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(3, 5, 32, generator=generator).to(dtype)
    mask = torch.rand(3, 5, generator=generator) < 0.5
    mask[0, 0] = True
    delta = pgd_perturbation(quadratic(5.0), embeds, mask, radius=0.3, relative=relative, step_size=0.2, steps=steps)
    assert delta.dtype == dtype and delta.isfinite().all() and not delta.requires_grad
    assert (delta[~mask] == 0).all()
    length = delta.double().norm(dim=-1)
    bound = 0.3 * embeds.double().norm(dim=-1) if relative else torch.full_like(length, 0.3)
    assert (length <= bound).all()
    assert (length[mask] > 0.1 * bound[mask]).all()
    assert quadratic(5.0)(embeds + delta) > quadratic(5.0)(embeds)


def test_one_step_by_hand():
    embeds = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    gradient = torch.tensor([[[2.0, -0.1], [5.0, 5.0]]])
    mask = torch.tensor([[True, False]])

    def never(_):
        raise AssertionError("the score is not needed: its first gradient is known")

    options = {"steps": 1, "first_gradient": gradient}
    # absolute: a step of .1 in each coordinate along the gradient's sign, inside the ball
    delta = pgd_perturbation(never, embeds, mask, radius=1.0, relative=False, step_size=0.1, **options)
    torch.testing.assert_close(delta, torch.tensor([[[0.1, -0.1], [0.0, 0.0]]]))
    # absolute, projected: as long as the radius
    delta = pgd_perturbation(never, embeds, mask, radius=1.0, relative=False, step_size=5.0, **options)
    half = 1 / math.sqrt(2)
    torch.testing.assert_close(delta, torch.tensor([[[half, -half], [0.0, 0.0]]]))
    # relative: a step of .2 times the norm 5 of the token
    delta = pgd_perturbation(never, embeds, mask, radius=0.5, relative=True, step_size=0.2, **options)
    torch.testing.assert_close(delta, torch.tensor([[[half, -half], [0.0, 0.0]]]))


def test_several_steps_equal_the_update_written_out():
    torch.manual_seed(0)
    embeds, centre = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    delta = pgd_perturbation(quadratic(centre), embeds, mask, radius=0.5, relative=False, step_size=0.2, steps=4)
    expected = torch.zeros_like(embeds)
    for b in range(2):
        for t in range(3):
            if not mask[b, t]:
                continue
            for _ in range(4):
                gradient = -2 * (embeds[b, t] + expected[b, t] - centre[b, t])
                expected[b, t] += 0.2 * gradient.sign()
                if expected[b, t].norm() > 0.5:
                    expected[b, t] *= 0.5 / expected[b, t].norm()
    torch.testing.assert_close(delta, expected, atol=1e-12, rtol=1e-12)


def test_zero_and_non_finite_gradients_do_not_move_a_token():
    embeds = torch.ones(1, 3, 2)
    gradient = torch.tensor([[[0.0, 0.0], [math.nan, math.inf], [1.0, 1.0]]])
    delta = pgd_perturbation(
        quadratic(0.0), embeds, torch.ones(1, 3, dtype=torch.bool), radius=0.5, relative=True, step_size=0.5, steps=1,
        first_gradient=gradient,
    )  # fmt: skip
    assert (delta[0, :2] == 0).all() and (delta[0, 2] > 0).all()


def test_the_papers_radius_does_not_survive_float32():
    """method: at eps = 5e-9 and H = 384 a coordinate moves by 2.6e-10, which most float32 values cannot represent."""
    embeds = 0.05 * torch.randn(1, 200, 384, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 200, dtype=torch.bool)
    delta = pgd_perturbation(
        quadratic(0.0), embeds, mask, radius=5e-9, relative=False, step_size=5.0, steps=1,
        first_gradient=torch.randn_like(embeds),
    )  # fmt: skip
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, 5e-9 / math.sqrt(384)), rtol=1e-4, atol=0)
    assert 0.0 < ((embeds + delta) != embeds).double().mean() < 0.3
