"""A request that the model cannot serve is refused before it is queued, with what is wrong."""

import asyncio
import math
from dataclasses import replace

import pytest

from server.engine.admission import InvalidRequestError
from server.engine.detokenizer import StopRules
from server.engine.engine import Engine
from server.engine.options import EngineOptions
from server.engine.sampling import SamplingParams
from server.engine.sequence import FinishReason, GenerationRequest
from tests.support.driving import GREEDY, TOKENIZER, runner_of, variants_of, weights_of
from tests.support.tiny import VOCAB, tiny_model

CONTEXT = 512


@pytest.fixture(scope="module")
def engine():
    made = Engine(runner_of(weights_of(tiny_model())), TOKENIZER, EngineOptions(10, 10_000))
    made.start()
    yield made
    made.stop()


def request_of(engine: Engine, **more) -> GenerationRequest:
    base = variants_of(engine._runner.decoder.weights)["base"]
    return replace(GenerationRequest("one", (5, 6), 4, base, sampling=GREEDY), **more)


def answer(engine: Engine, request: GenerationRequest) -> FinishReason:
    async def ask() -> FinishReason:
        inbox = asyncio.Queue()
        engine.submit(request, inbox)
        while True:
            _, delta = await asyncio.wait_for(inbox.get(), 20)
            if delta.finish_reason is not None:
                return delta.finish_reason

    return asyncio.run(ask())


def sampling(**more) -> dict[str, SamplingParams]:
    return {"sampling": SamplingParams(**more)}


@pytest.mark.parametrize("token", [-1, VOCAB, 2**31 - 1, 2**40])
@pytest.mark.parametrize(
    ("field", "where"),
    [
        (lambda token: {"prompt": (5, token)}, "prompt"),
        (lambda token: {"stop": StopRules(token_ids=frozenset({token}))}, "stop_token_ids"),
        (lambda token: {"eos_token_ids": frozenset({token}), "min_tokens": 2}, "EOS"),
        (lambda token: sampling(logit_bias={token: 1.0}), "logit_bias"),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused(engine, token, field, where):
    with pytest.raises(InvalidRequestError, match=f"{where}.*no token {token}"):
        answer(engine, request_of(engine, **field(token)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ()}, "empty"),
        ({"max_tokens": -1}, "negative"),
        ({"prompt": (5,) * CONTEXT, "max_tokens": 1}, "context length is 512"),
        *(
            (sampling(**{name: value}), name)
            for name, values in {
                "temperature": (-1.0, math.nan, math.inf),
                "top_p": (-0.1, 1.1, math.nan),
                "top_k": (-1,),
                "min_p": (-0.1, 1.1, math.nan),
                "repetition_penalty": (0.0, -1.0, math.nan, math.inf),
                "presence_penalty": (math.nan, math.inf),
                "frequency_penalty": (math.nan, -math.inf),
                "seed": (2**64, -(2**63) - 1),
            }.items()
            for value in values
        ),
        (sampling(logit_bias={5: math.nan}), "logit_bias"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(engine, changes, said):
    with pytest.raises(InvalidRequestError, match=said):
        answer(engine, request_of(engine, **changes))


def test_the_last_ids_and_a_full_context_are_served(engine):
    last = VOCAB - 1
    request = request_of(
        engine,
        prompt=(last,) * (CONTEXT - 3),
        max_tokens=3,
        eos_token_ids=frozenset({last, 0}),
        min_tokens=3,
        stop=StopRules(token_ids=frozenset({last})),
        sampling=SamplingParams(temperature=0.0, logit_bias={last: -5.0, 0: -5.0}),
    )
    assert answer(engine, request) is FinishReason.LENGTH
