"""The same questions answered by every variant, for people to compare."""

from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write a short poem about the sea.",
    "How do I boil an egg?",
)
_TOKENS = 64


def sample_answers(model: LoadedModel) -> dict[str, dict[str, str]]:
    """Greedy answers of at most 64 tokens, by prompt and variant, the base among them.

    A model without a chat template goes on with the prompt instead.
    """
    runner = build_runner(model, EngineConfig(kv_tokens=8192), None)
    found: dict[str, dict[str, str]] = {}
    for prompt in PROMPTS:
        tokens = _tokens(model, prompt)
        requests = [
            GenerationRequest(
                request_id=name,
                prompt=tokens,
                max_tokens=_TOKENS,
                variant=spec,
                sampling=SamplingParams(temperature=0.0),
                eos_token_ids=model.eos_token_ids,
            )
            for name, spec in model.variants.items()
        ]
        found[prompt] = {
            answer.request.request_id: model.tokenizer.decode(
                answer.output, skip_special_tokens=True
            )
            for answer in answer_all(runner, model.tokenizer, requests)
        }
    return found


def _tokens(model: LoadedModel, prompt: str) -> tuple[int, ...]:
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode(prompt))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return tuple(tokenizer.encode(str(text), add_special_tokens=False))
