import pytest
import torch

from pruners.recovery.solve import (
    LinearMoments,
    Refit,
    fit_bias,
    fit_low_rank,
    fit_weights,
    relative_errors,
)

KEPT = torch.tensor([0, 2, 3, 6, 9])


@pytest.fixture
def problem() -> tuple[torch.Tensor, LinearMoments]:
    """400 correlated samples of 10 features with a mean, a weight `[7, 10]` and their moments."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    samples = torch.randn(400, 10, generator=generator, dtype=torch.float64) @ mixing + 2
    weight = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    return samples, LinearMoments(weight, samples.mean(0), samples.T @ samples / 400)


def refit(moments: LinearMoments, ridge: float) -> Refit:
    """With one ridge among others, which must not change it."""
    return list(fit_weights(moments, KEPT, (10.0, ridge, 3.0)))[1]


def test_refit_equals_lstsq(problem):
    samples, moments = problem
    change = refit(moments, 0.0).change
    replacement = moments.weight[:, KEPT] + change
    with_constant = torch.cat([samples[:, KEPT], torch.ones(400, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(with_constant, samples @ moments.weight.T).solution.T
    torch.testing.assert_close(replacement, expected[:, :-1])
    torch.testing.assert_close(fit_bias(moments, KEPT, replacement), expected[:, -1])


def test_ridge_equals_lstsq_on_augmented_samples(problem):
    """A ridge is least squares with one more sample a feature, at which no change is wanted."""
    samples, moments = problem
    lost = torch.tensor([j for j in range(10) if j not in KEPT.tolist()])
    centred = samples - samples.mean(0)
    strength = 0.1 * centred[:, KEPT].var(0, correction=0).mean()
    rows = torch.cat([centred[:, KEPT], (400 * strength).sqrt() * torch.eye(5).double()])
    wanted = torch.cat([centred[:, lost] @ moments.weight[:, lost].T, torch.zeros(5, 7).double()])
    change = refit(moments, 0.1).change
    torch.testing.assert_close(change, torch.linalg.lstsq(rows, wanted).solution.T)


def test_a_strong_ridge_leaves_the_kept_columns(problem):
    _, moments = problem
    assert refit(moments, 1e9).change.abs().max() < 1e-6


@pytest.mark.parametrize("rank", range(6))
def test_low_rank_is_the_whitened_svd_and_beats_any_other(problem, rank: int):
    _, moments = problem
    fitted = refit(moments, 1e-3)
    change, second = fitted.change, fitted.regularised
    root = torch.linalg.cholesky(second)

    def error(approximation: torch.Tensor) -> float:
        return ((change - approximation) @ root).norm().item()

    singular = torch.linalg.svdvals(change @ root)
    generator = torch.Generator().manual_seed(1 + rank)
    up, down = fit_low_rank(change, second, rank)
    assert up.shape == (7, rank)
    assert down.shape == (rank, 5)
    assert error(up @ down) == pytest.approx(singular[rank:].norm().item(), abs=1e-9)
    for _ in range(50):
        other = torch.randn(7, rank, generator=generator, dtype=torch.float64)
        best_down = torch.linalg.pinv(other) @ change  # the best one for this `up`
        assert error(up @ down) <= error(other @ best_down) + 1e-9
        noisy = up + 0.1 * torch.randn(up.shape, generator=generator, dtype=torch.float64)
        assert error(up @ down) <= error(noisy @ down) + 1e-9


def test_a_low_rank_of_full_rank_is_the_change_itself(problem):
    _, moments = problem
    fitted = refit(moments, 1e-3)
    up, down = fit_low_rank(fitted.change, fitted.regularised, 5)
    torch.testing.assert_close(up @ down, fitted.change)


def test_relative_error_equals_the_samples(problem):
    samples, moments = problem
    generator = torch.Generator().manual_seed(2)
    replacement = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    added = torch.randn(7, generator=generator, dtype=torch.float64)
    truth = samples @ moments.weight.T
    rest = truth - samples[:, KEPT] @ replacement.T - added
    expected = rest.square().sum() / truth.square().sum()
    found = relative_errors(moments, KEPT, replacement, [0 * added, added])[1]
    assert found == pytest.approx(expected.item())
    silent = LinearMoments(0 * moments.weight, moments.mean, moments.second)
    assert relative_errors(silent, KEPT, 0 * replacement, [added]) == [0]
