"""Sampling against the distribution that its parameters define."""

import pytest
import torch

from server.engine import draw
from server.engine.draw import Draw, choose, key_of, noise
from server.engine.sampling import SamplingError, SamplingParams, TokenSampler

LOGITS = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -3.0])


def draws(params, logits=LOGITS, count=6000):
    sampler = TokenSampler(params)
    found = torch.zeros(len(logits))
    for position in range(count):
        found[choose(logits, sampler.draw(position))] += 1
    return found / count


def expected(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution by definition: temperature, then top-k, then top-p and min-p."""
    probabilities = (logits / temperature).softmax(0)
    ranked = probabilities.sort(descending=True).indices.tolist()
    if top_k:
        probabilities[ranked[top_k:]] = 0
        probabilities /= probabilities.sum()
    mass, cut = 0.0, torch.zeros_like(probabilities, dtype=torch.bool)
    for token in ranked:
        if mass >= top_p or probabilities[token] < min_p * probabilities.max():
            cut[token] = True
        mass += float(probabilities[token])
    probabilities[cut] = 0
    return probabilities / probabilities.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.8},
    ],
)
def test_frequencies_follow_the_distribution(params):
    found = draws(SamplingParams(seed=1, **params))
    wanted = expected(LOGITS.clone(), **params)
    assert (found - wanted).abs().max() < 0.025
    assert (found[wanted == 0] == 0).all()


def test_a_nucleus_wider_than_the_first_candidates_is_still_exact():
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.1
    kept = draw._kept(logits - logits.max(), Draw(1.0, top_p=0.9))
    by_hand = (expected(logits, top_p=0.9) > 0).sum()
    assert abs(len(kept) - int(by_hand)) <= 1


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    def write(seed):
        sampler = TokenSampler(SamplingParams(seed=seed))
        return [choose(LOGITS, sampler.draw(position)) for position in range(40)]

    assert write(5) == write(5)
    assert write(5) != write(6)


def test_greedy_takes_the_first_of_the_largest():
    assert TokenSampler(SamplingParams(temperature=0))(LOGITS, [], []) == 0


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow():
    assert TokenSampler(SamplingParams(temperature=1e-6, seed=0))(LOGITS * 1000, [], []) == 0


def test_penalties_and_biases_move_the_right_tokens():
    def choose(prompt, output, **params):
        return TokenSampler(SamplingParams(temperature=0, **params))(LOGITS, prompt, output)

    assert choose([0], [], repetition_penalty=2.0) == 1
    assert choose([0], [], presence_penalty=2.0) == 0, "presence counts the output only"
    assert choose([], [0], presence_penalty=2.0) == 1
    assert choose([], [0, 0, 1], frequency_penalty=0.6) == 1
    assert choose([], [], logit_bias={5: 100.0}) == 5


EXTREMES = {
    "temperature": [0.0, -0.0, 1e-46, 1e-30, 1e-5, 100.0, 1e30],
    "top_p": [0.0, 1e-46, 1e-8, 0.5, 1.0],
    "min_p": [0.0, -0.0, 1e-46, 1.0],
    "top_k": [0, 1, len(LOGITS), 2**62],
    "repetition_penalty": [1e-46, 1e-30, 1.0, 10.0, 1e30],
    "presence_penalty": [-1e30, -2.0, -0.0, 1e-46, 2.0, 1e30],
    "frequency_penalty": [-1e30, -2.0, -0.0, 1e-46, 2.0, 1e30],
    "logit_bias": [{0: -100.0, 1: 100.0}, {5: 1e-46}, dict.fromkeys(range(6), -1e30), {4: 1e30}],
    "seed": [-(2**63), 0, 2**63, 2**64 - 1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("temperature", [0.0, 1e-46, 0.01, 1.0, 100.0])
def test_at_both_ends_of_every_parameter_there_is_a_token(name, temperature):
    for value in EXTREMES[name]:
        params = SamplingParams(**{"temperature": temperature, "seed": 4, name: value})
        sampler = TokenSampler(params)
        for logits in (LOGITS, LOGITS * 1e4, torch.zeros(6)):
            for length in range(3, 23):
                output = [0, 1, 1, *[2] * (length - 3)]
                assert 0 <= sampler(logits, [0, 5], output) < len(LOGITS), value


@pytest.mark.parametrize("temperature", [0.0, -0.0, 5e-324, 1e-46, 1e-38, 9e-6])
def test_what_is_nearly_zero_is_greedy(temperature):
    params = SamplingParams(temperature=temperature, seed=1)
    assert params.greedy
    ties = torch.tensor([1.0, 2.0, 2.0, 0.0])
    sampler = TokenSampler(params)
    assert [choose(ties, sampler.draw(position)) for position in range(20)] == [1] * 20


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 1}, {0}),
        ({"top_p": 1e-46}, {0}),
        ({"min_p": 1.0}, {0}),
        ({"logit_bias": {0: -1e30, 3: 1e30}}, {3}),
        ({"repetition_penalty": 1e-46}, {1}),
        ({"presence_penalty": -1e30, "top_k": 1}, {4}),
        ({"temperature": 1e30}, set(range(6))),
    ],
)
def test_extremes_mean_what_they_say(params, allowed):
    seen, output = ([1], []) if "repetition_penalty" in params else ([], [4])
    found = set()
    for seed in range(200):
        sampler = TokenSampler(SamplingParams(**{"temperature": 1.0, "seed": seed, **params}))
        found.add(sampler(LOGITS, seen, output))
    assert found == allowed


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, "all"])
@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}]
)
def test_what_is_no_number_is_refused(bad, params):
    logits = LOGITS.clone()
    if bad == "all":
        logits.fill_(-torch.inf)
    else:
        logits[3] = bad
    with pytest.raises(SamplingError):
        TokenSampler(SamplingParams(seed=0, **params))(logits, [], [])


def test_what_has_no_probability_is_never_taken():
    logits = torch.tensor([0.0, 1.0, -torch.inf])
    drawn = [choose(logits, Draw(1e30, key=key_of(1, position))) for position in range(200)]
    assert set(drawn) == {0, 1}


def test_noise_is_standard_and_independent_of_the_key_and_the_token():
    """By Kolmogorov and Smirnov, and by the correlation of neighbouring tokens, keys and bits."""
    keys = [key_of(seed, position) for seed in (0, 1, 7) for position in range(12)]
    keys += [1 << bit for bit in range(0, 64, 7)]
    drawn = torch.stack([noise(key, torch.arange(50_000)) for key in keys]).double()
    assert drawn.isfinite().all()
    share = (-(-drawn).exp()).exp()  # uniform
    expected = torch.arange(1, 50_001) / 50_000
    assert ((share.sort(dim=1).values - expected).abs().max(1).values < 0.0095).all()
    between = torch.corrcoef(share) - torch.eye(len(keys))
    assert between.abs().max() < 0.025
    for lag in (1, 16, 32, 4096):
        pairs = torch.stack([share[:, lag:].flatten(), share[:, :-lag].flatten()])
        assert torch.corrcoef(pairs)[0, 1].abs() < 0.004


def test_what_is_rare_is_drawn_as_often_as_it_should_be():
    """Of two million draws of a token with a probability of 1e-4."""
    noises = noise(3, torch.arange(4_000_000)).view(2, -1)
    share = (noises[0] > noises[1] + torch.tensor(1e-4).logit()).float().mean()
    wins = (noises[0] + torch.tensor(1e-4).logit() > noises[1]).float().mean()
    assert 1e-4 * 0.8 < wins < 1e-4 * 1.2
    assert share > 0.99979
