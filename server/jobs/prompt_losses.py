"""Real prompts through the base and all variants: what each variant loses on each of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from pruners.data.corpus import Corpus
from pruners.support.checkpoint import Checkpoint
from pruners.variant import BASE
from server.engine.backends.base import Segment
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.engine.sequence import Sequence as Answer
from server.shadow.teacher_forcing import TeacherForcedLoss, TeacherForcing

_BATCH = 16  # prompts answered together
_LONGEST = 512  # tokens of a prompt; longer ones are left out


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the analyzer reads it and as the model does."""

    text: str
    tokens: tuple[int, ...]

    @property
    def name(self) -> str:
        """Sixteen hexadecimal digits that stand for the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class PromptLosses:
    """Of one prompt: how many tokens the base answered, and what each variant makes of them.

    `kl` to the base and `surprise`, a variant's own loss, are in nats per token, in the order of
    the model's variants, the base first. `prompt` is the base's loss on the prompt itself.
    """

    answer: int
    prompt: float
    kl: tuple[float, ...]
    surprise: tuple[float, ...]


def read_prompts(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[EncodedPrompt]:
    """The first usable ones. Conversations end before the first answer."""
    found: list[EncodedPrompt] = []
    for document in corpus.documents:
        if isinstance(document, str):
            turns = [{"role": "user", "content": document}]
        else:
            roles = [turn["role"] for turn in document]
            end = roles.index("assistant") if "assistant" in roles else len(roles)
            turns = document[:end]
        text = "\n".join(turn["content"] for turn in turns)
        if not text.strip():
            continue
        if tokenizer.chat_template is None:
            tokens = tokenizer.encode(text)
        else:
            framed = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            tokens = tokenizer.encode(str(framed), add_special_tokens=False)
        if len(tokens) <= _LONGEST:
            found.append(EncodedPrompt(text, tuple(tokens)))
        if len(found) == limit:
            break
    return found


def measure_losses(
    model: LoadedModel,
    asked: Sequence[EncodedPrompt],
    answer_tokens: int,
    checkpoint: Checkpoint,
    progress: Progress,
) -> list[PromptLosses]:
    """The base answers each prompt at temperature 1, and all variants read prompt and answer.

    What is measured is noted in the checkpoint.
    """
    variants = list(model.variants.values())
    room = (_LONGEST + answer_tokens) * (len(variants) + 1 + _BATCH)
    config = EngineConfig(max_running=_BATCH, kv_tokens=room, speculate=False)
    runner = build_runner(model, config, None)
    task = progress.add_task("Measuring prompts", total=len(asked))
    rows: list[PromptLosses] = []
    for first in range(0, len(asked), _BATCH):
        batch = asked[first : first + _BATCH]

        def compute(
            first: int = first, batch: Sequence[EncodedPrompt] = batch
        ) -> list[list[object]]:
            requests = [
                GenerationRequest(
                    request_id=str(index),
                    prompt=one.tokens,
                    max_tokens=answer_tokens,
                    variant=model.variants[BASE],
                    sampling=SamplingParams(seed=index),
                    eos_token_ids=model.eos_token_ids,
                    min_tokens=2,
                )
                for index, one in enumerate(batch, first)
            ]
            answers = answer_all(runner, model.tokenizer, requests)
            found: list[list[object]] = []
            for answer in answers:
                read = _read(runner, model, answer)
                kl, surprise = [one.kl for one in read], [one.nll for one in read]
                loss = _prompt_loss(runner, model, answer.request.prompt)
                found.append([len(answer.output), loss, kl, surprise])
            return found

        noted = checkpoint.get_or_compute(f"prompts and answers from {first}", compute)
        rows += [
            PromptLosses(n, loss, tuple(kl), tuple(surprise)) for n, loss, kl, surprise in noted
        ]
        progress.update(task, completed=len(rows))
    return rows


def _prompt_loss(runner: Runner, model: LoadedModel, prompt: Sequence[int]) -> float:
    """Of the base, in nats per token; 0 for a single token, which nothing predicts."""
    cache = runner.decoder.cache.open()
    if not cache.reserve(len(prompt)):
        raise RuntimeError("the cache is too small for the prompts of a sweep")
    with runner.threads():
        hidden = runner.decoder.forward([Segment(list(prompt), cache, model.variants[BASE])])
        said = runner.decoder.logits(hidden[:-1]).float().log_softmax(-1).cpu()
    cache.close()
    follows = torch.tensor(prompt[1:], dtype=torch.long)[:, None]
    return -float(said.gather(-1, follows).mean()) if len(follows) else 0.0


def _read(runner: Runner, model: LoadedModel, answer: Answer) -> list[TeacherForcedLoss]:
    """The base against itself first, then every other variant."""
    base, variants = model.variants[BASE], list(model.variants.values())
    reading = TeacherForcing(
        runner.decoder, answer.request.prompt, answer.output, base, variants, chunk_tokens=128
    )
    with runner.threads():
        while reading.advance():
            pass
    found = reading.losses()
    reading.close()
    return found
