"""Sampling against the distribution that its parameters define."""

import pytest
import torch

from server.engine.sampling import Sampler, SamplingParams

LOGITS = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -3.0])


def draws(params, logits=LOGITS, count=6000):
    sampler = Sampler(params)
    found = torch.zeros(len(logits))
    for _ in range(count):
        found[sampler(logits, [], [])] += 1
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
    sampler = Sampler(SamplingParams(top_p=0.9, seed=0))
    _, kept = sampler._candidates(logits)
    by_hand = (expected(logits, top_p=0.9) > 0).sum()
    assert abs(len(kept) - int(by_hand)) <= 1


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    def write(seed):
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler(LOGITS, [], []) for _ in range(40)]

    assert write(5) == write(5)
    assert write(5) != write(6)


def test_greedy_takes_the_first_of_the_largest():
    assert Sampler(SamplingParams(temperature=0))(LOGITS, [], []) == 0


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow():
    assert Sampler(SamplingParams(temperature=1e-6, seed=0))(LOGITS * 1000, [], []) == 0


def test_penalties_and_biases_move_the_right_tokens():
    def choose(prompt, output, **params):
        return Sampler(SamplingParams(temperature=0, **params))(LOGITS, prompt, output)

    assert choose([0], [], repetition_penalty=2.0) == 1
    assert choose([0], [], presence_penalty=2.0) == 0, "presence counts the output only"
    assert choose([], [0], presence_penalty=2.0) == 1
    assert choose([], [0, 0, 1], frequency_penalty=0.6) == 1
    assert choose([], [], logit_bias={5: 100.0}) == 5
