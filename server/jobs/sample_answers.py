"""Lets every variant answer the same questions, for people to compare."""

from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.jobs.prompt_losses import encode_turns

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Write a short poem about the sea.",
    "How do I boil an egg?",
)
_ANSWER_TOKENS = 64
_KV_TOKENS = 8192


def sample_answers(model: LoadedModel) -> dict[str, dict[str, str]]:
    """Return greedy answers of at most 64 tokens by question and variant, the base included.

    A model without a chat template continues the question instead.
    """
    runner = build_runner(model, EngineConfig(kv_tokens=_KV_TOKENS), None)
    answers: dict[str, dict[str, str]] = {}
    for question in QUESTIONS:
        prompt = encode_turns(model.tokenizer, [{"role": "user", "content": question}])
        requests = [
            GenerationRequest(
                request_id=name,
                prompt=prompt,
                max_tokens=_ANSWER_TOKENS,
                variant=spec,
                sampling=SamplingParams(temperature=0.0),
                eos_token_ids=model.eos_token_ids,
            )
            for name, spec in model.variants.items()
        ]
        answers[question] = {
            answer.request.request_id: model.tokenizer.decode(
                answer.output, skip_special_tokens=True
            )
            for answer in answer_all(runner, model.tokenizer, requests)
        }
    return answers
