"""A prompt's embedding is made of the hidden states that `transformers` computes."""

import pytest
import torch

from server.engine.admission import InvalidRequestError, check
from server.engine.pooling import HiddenPool, Pooling
from server.engine.sequence import FinishReason, GenerationRequest
from tests.support.driving import run, runner_of, submit, variants_of, weights_of
from tests.support.readers import SHALLOW
from tests.support.tiny import tiny_model

MODEL = tiny_model()
WEIGHTS = weights_of(MODEL)
BASE = variants_of(WEIGHTS)["base"]
PROMPT = [(31 * i) % 384 for i in range(75)]  # read in three steps


def reference(prompt: list[int], pooling: Pooling) -> torch.Tensor:
    """The embedding by `transformers`, whose last hidden states are those after the final norm."""
    hidden = MODEL.model(torch.tensor([prompt])).last_hidden_state[0]
    pooled = hidden.mean(0) if pooling is Pooling.MEAN else hidden[-1]
    return torch.nn.functional.normalize(pooled, dim=0)


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]], ids=["long", "one token"])
def test_an_embedding_is_that_of_transformers(prompt, pooling):
    runner = runner_of(WEIGHTS)
    _, recorder = submit(runner, prompt, BASE, 0, pooling=pooling)
    run(runner)
    assert recorder.last.finish_reason is FinishReason.LENGTH
    torch.testing.assert_close(recorder.last.embedding, reference(prompt, pooling))


@pytest.mark.parametrize("pooling", Pooling)
def test_an_embedding_does_not_depend_on_what_is_cached_or_beside_it(pooling):
    runner = runner_of(WEIGHTS)
    _, first = submit(runner, PROMPT, BASE, 0, pooling=pooling)
    run(runner)
    _, beside = submit(runner, PROMPT[5:60], BASE, 12)
    again, second = submit(runner, PROMPT, BASE, 0, pooling=pooling)
    run(runner)
    assert len(beside.tokens) == 12
    assert (again.reused > 0) == (pooling is Pooling.LAST)
    torch.testing.assert_close(first.last.embedding, second.last.embedding)


def test_a_prompt_that_is_preempted_is_embedded_as_before():
    embeddings = []
    for preempted in (False, True):
        runner = runner_of(WEIGHTS)
        sequence, recorder = submit(runner, PROMPT, BASE, 0, pooling=Pooling.MEAN)
        runner.step()
        if preempted:
            runner.scheduler._preempt(sequence)
        run(runner)
        embeddings.append(recorder.last.embedding)
    torch.testing.assert_close(*embeddings)


def test_an_embedding_that_is_no_number_ends_its_own_request_alone(monkeypatch):
    runner = runner_of(WEIGHTS)
    lost, recorder = submit(runner, PROMPT, BASE, 0, pooling=Pooling.MEAN)
    _, other = submit(runner, PROMPT[:20], BASE, 4)
    add = HiddenPool.add
    monkeypatch.setattr(
        HiddenPool, "add", lambda self, first, rows: add(self, first, rows * torch.inf)
    )
    run(runner)
    assert recorder.last.finish_reason is FinishReason.ERROR
    assert recorder.last.error == "the embedding of this prompt is not finite"
    assert lost.ended
    assert len(other.tokens) == 4


@pytest.mark.parametrize("more", [{"max_tokens": 3}, {"max_tokens": 0, "reader": SHALLOW}])
def test_what_is_embedded_is_read_in_full_and_not_answered(more):
    request = GenerationRequest("x", (1, 2), variant=BASE, pooling=Pooling.MEAN, **more)
    with pytest.raises(InvalidRequestError, match="read in full, and not answered"):
        check(request, 384, 512)
