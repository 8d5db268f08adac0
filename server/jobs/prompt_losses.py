"""Measures on real prompts what each variant loses against the base."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from pruners.data.corpus import Corpus
from pruners.support.checkpoint import Checkpoint
from pruners.support.errors import UserError
from pruners.variant import BASE
from server.engine.backends.base import Segment
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all, sampled_requests
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.engine.sequence import Sequence as Answer
from server.shadow.teacher_forcing import TeacherForcedLoss, TeacherForcing

MIN_PROMPTS = 40
"""Fewest prompts that a profile or a predictor is made from."""
_BATCH = 16  # prompts that are answered together
_MAX_PROMPT_TOKENS = 512  # longer prompts are left out
_CHUNK_TOKENS = 128


class TooFewPromptsError(UserError):
    """A corpus has too few prompts that can be used. The message is one line."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the analyzer sees it (`text`) and as the model does (token ids)."""

    text: str
    tokens: tuple[int, ...]

    @property
    def name(self) -> str:
        """Sixteen hexadecimal digits that stand for the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class PromptLosses:
    """The losses on one prompt and on the base's answer to it.

    `answer` is the number of tokens of the answer. `kl` (to the base) and `nll` (mean negative
    log-likelihood) are in nats per token of the answer, one for each variant, the base first.
    `prompt` is the base's mean negative log-likelihood of the prompt.
    """

    answer: int
    prompt: float
    kl: tuple[float, ...]
    nll: tuple[float, ...]


def encode_turns(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]]
) -> tuple[int, ...]:
    """Return the token ids of a conversation after which the model answers.

    A model without a chat template continues the text of the turns.
    """
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode("\n".join(turn["content"] for turn in turns)))
    text = tokenizer.apply_chat_template(
        [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=True
    )
    return tuple(tokenizer.encode(str(text), add_special_tokens=False))


def read_prompts(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    minimum: int = 0,
    longest: int = _MAX_PROMPT_TOKENS,
) -> list[EncodedPrompt]:
    """Return the first `limit` usable prompts. Conversations end before the first answer.

    Prompts of more than `longest` tokens are left out. Raises `TooFewPromptsError` if there are
    fewer than `minimum`.
    """
    prompts: list[EncodedPrompt] = []
    for document in corpus.documents:
        if isinstance(document, str):
            turns = [{"role": "user", "content": document}]
        else:
            roles = [turn["role"] for turn in document]
            turns = document[: roles.index("assistant") if "assistant" in roles else len(roles)]
        text = "\n".join(turn["content"] for turn in turns)
        if not text.strip():
            continue
        tokens = encode_turns(tokenizer, turns)
        if len(tokens) <= longest:
            prompts.append(EncodedPrompt(text, tokens))
        if len(prompts) == limit:
            break
    if len(prompts) < minimum:
        raise TooFewPromptsError(
            f"{corpus.name} has {len(prompts)} usable prompts; {minimum} are needed"
        )
    return prompts


def measure_losses(
    model: LoadedModel,
    prompts: Sequence[EncodedPrompt],
    answer_tokens: int,
    checkpoint: Checkpoint,
    progress: Progress,
) -> list[PromptLosses]:
    """Let the base answer each prompt at temperature 1, and measure all variants on the answer.

    Finished batches are saved in the checkpoint.
    """
    sequences = len(model.variants) + 1 + _BATCH
    slots = (_MAX_PROMPT_TOKENS + answer_tokens) * sequences
    config = EngineConfig(max_running=_BATCH, kv_tokens=slots, speculate=False)
    runner = build_runner(model, config, None)
    task = progress.add_task("Measuring prompts", total=len(prompts))
    losses: list[PromptLosses] = []
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]

        def compute(
            first: int = first, batch: Sequence[EncodedPrompt] = batch
        ) -> list[list[object]]:
            answers = _answer(runner, model, batch, first, answer_tokens)
            return [_measure(runner, model, answer) for answer in answers]

        saved = checkpoint.get_or_compute(f"prompts and answers from {first}", compute)
        losses += [
            PromptLosses(answer, prompt, tuple(kl), tuple(nll)) for answer, prompt, kl, nll in saved
        ]
        progress.update(task, completed=len(losses))
    return losses


def _answer(
    runner: Runner,
    model: LoadedModel,
    batch: Sequence[EncodedPrompt],
    first: int,
    answer_tokens: int,
) -> list[Answer]:
    """Answer the prompts of a batch, whose numbers from `first` on are their seeds."""
    tokens = (prompt.tokens for prompt in batch)
    requests = sampled_requests(
        tokens, model.variants[BASE], model.eos_token_ids, answer_tokens, first
    )
    return answer_all(runner, model.tokenizer, requests)


def _measure(runner: Runner, model: LoadedModel, answer: Answer) -> list[object]:
    """Return the fields of `PromptLosses` in their order, as JSON values."""
    losses = _answer_losses(runner, model, answer)
    prompt_loss = _prompt_loss(runner, model, answer.request.prompt)
    kl, nll = [loss.kl for loss in losses], [loss.nll for loss in losses]
    return [len(answer.output), prompt_loss, kl, nll]


def _prompt_loss(runner: Runner, model: LoadedModel, prompt: Sequence[int]) -> float:
    """Return the base's loss on a prompt in nats per token; 0 for a prompt of one token."""
    cache = runner.decoder.cache.open()
    if not cache.reserve(len(prompt)):
        raise RuntimeError("the cache is too small for the prompts")
    with runner.threads():
        hidden = runner.decoder.forward([Segment(list(prompt), cache, model.variants[BASE])])
        log_probabilities = runner.decoder.logits(hidden[:-1]).float().log_softmax(-1).cpu()
    cache.close()
    next_tokens = torch.tensor(prompt[1:], dtype=torch.long)[:, None]  # [tokens - 1, 1]
    return -float(log_probabilities.gather(-1, next_tokens).mean()) if len(next_tokens) else 0.0


def _answer_losses(runner: Runner, model: LoadedModel, answer: Answer) -> list[TeacherForcedLoss]:
    """Return the loss of each variant on an answer, that of the base against itself first."""
    check = TeacherForcing(
        runner.decoder,
        answer.request.prompt,
        answer.output,
        model.variants[BASE],
        list(model.variants.values()),
        chunk_tokens=_CHUNK_TOKENS,
    )
    with runner.threads():
        while check.advance():
            pass
    losses = check.losses()
    check.close()
    return losses
