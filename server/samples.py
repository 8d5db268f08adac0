"""The same questions answered by every variant, for people to compare."""

from server.app import build_runner
from server.engine.load import LoadedModel
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence
from server.engine.text import StopRules, TextStream
from server.settings import Settings

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
    runner = build_runner(model, Settings(kv_tokens=4096), None)
    found: dict[str, dict[str, str]] = {prompt: {} for prompt in PROMPTS}
    for prompt in PROMPTS:
        tokens = _tokens(model, prompt)
        for name, spec in model.variants.items():
            texts: list[str] = []
            request = GenerationRequest(
                request_id=f"{name} {prompt}",
                prompt=tokens,
                max_tokens=_TOKENS,
                variant=spec,
                sampling=SamplingParams(temperature=0.0),
                eos_token_ids=model.eos_token_ids,
            )
            stream = TextStream(model.tokenizer, StopRules())
            sequence = Sequence(request, stream, lambda delta, out=texts: out.append(delta.text))  # type: ignore[misc]
            runner.scheduler.add(sequence)
            while runner.step():
                pass
            found[prompt][name] = "".join(texts)
    return found


def _tokens(model: LoadedModel, prompt: str) -> tuple[int, ...]:
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode(prompt))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return tuple(tokenizer.encode(str(text), add_special_tokens=False))
