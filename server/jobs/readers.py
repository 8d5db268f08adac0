"""`trimtab readers`: fits the readers of an artefact, and measures what they lose."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from pruners.architecture import LocatedModel
from pruners.artefact.folder import ARTEFACT, Artefact, load_artefact
from pruners.builder.readers import ReadingText, fit_readers
from pruners.builder.recipe import DEFAULT_READERS, BuildError, ReaderPlan, make_readers
from pruners.data.corpus import Corpus, SourceError
from pruners.data.reading_text import reading_rows
from pruners.data.rows import count_tokens, hash_rows
from pruners.evaluation.reading_quality import cut_answers
from pruners.reading.reader import token_kinds
from pruners.support.checkpoint import CHECKPOINT, Checkpoint
from pruners.support.files import check_folder
from pruners.support.progress import progress_bars
from server.engine.loading.load import load_tokenizer
from server.engine.loading.source import cache_folder, resolve_model
from server.jobs.job_setup import SELF_GENERATED, TokenRows, checkpoint_folder, load_base
from server.jobs.own_answers import answer_prompts
from server.jobs.reading_prompts import split_prompts, with_look_ups
from server.jobs.self_generated_text import SelfGeneratedText

_ROW_TOKENS = 2048
_HELD_OUT_ROWS, _HELD_OUT_SEED, _FIRST_SEED = 8, 3, 300
_TEXT_SHARE = 0.5  # of the tokens; the rest are the same text in conversations, and facts
_GIVEN_SHARE = 0.75  # of a given text; the rest is held out
FACTS = "with lists of made-up facts and questions"


@dataclass(frozen=True, slots=True)
class ReadersRequest:
    """Readers to fit, and what on; `epochs` is how often their maps are then trained on it.

    It is about `tokens` of text: of `corpus`, or else of what the base writes. Or it is the base's
    answers to the first `prompt_limit` of `prompts`, and `tokens` and `corpus` do not count.
    """

    plans: tuple[ReaderPlan, ...] = DEFAULT_READERS
    tokens: int = 32_768
    corpus: Corpus | None = None
    seed: int = 0
    epochs: int = 0
    prompts: Corpus | None = None
    prompt_limit: int = 1000


@dataclass(frozen=True, slots=True)
class _Base:
    """A model that writes text and answers: its folder, and what is read with it.

    `kept` stays: other jobs on this model read what it has written from there too.
    """

    source: Path
    located: LocatedModel
    tokenizer: PreTrainedTokenizerBase
    kept: Checkpoint
    progress: Progress


@dataclass(frozen=True, slots=True)
class GivenText:
    """Rows to make calibration text from, rows to measure on, and what they are."""

    rows: TokenRows
    held_out: TokenRows
    source: str


def make_reading_text(
    tokenizer: PreTrainedTokenizerBase, vocab: int, given: GivenText, request: ReadersRequest
) -> ReadingText:
    """Return what readers are fitted on and measured on."""
    return ReadingText(
        reading_rows(tokenizer, given.rows, request.tokens, request.seed),
        cut_answers(given.held_out),
        token_kinds(tokenizer, vocab),
        f"{given.source}, {FACTS}",
        request.epochs,
    )


def replace_readers(model: str, folder: Path, out: Path, request: ReadersRequest) -> Artefact:
    """Write the artefact to `out` with the readers of the request, instead of those it had.

    An interrupted call goes on where it stopped, from a folder beside `out`. Raises `TargetError`,
    `ArtefactError`, `BuildError`, `SourceError` or `UnsupportedModelError`.
    """
    unfinished = checkpoint_folder(out, "readers")
    check_folder(out, ARTEFACT)
    check_folder(unfinished, CHECKPOINT)
    artefact = load_artefact(folder)
    readers = make_readers(request.plans, artefact.shape)
    taken = sorted(readers.keys() & {spec.name for spec in artefact.variants})
    if taken:
        raise BuildError(f"a variant is already named '{taken[0]}'")
    source = resolve_model(model)
    located = load_base(source, artefact)
    if not located.causal:
        raise BuildError(f"{artefact.model_name} is an encoder; it reads no prompt before writing")
    tokenizer = load_tokenizer(source)
    kept = Checkpoint(cache_folder() / "text" / artefact.fingerprint, artefact.fingerprint)
    with progress_bars() as progress:
        base = _Base(source, located, tokenizer, kept, progress)
        text, told = _reading_text(base, request)
        identity = {
            "artefact": artefact.identity(),
            "readers": repr(sorted(readers.items())),
            "epochs": request.epochs,
            "text": [
                hash_rows(text.rows),
                hash_rows([one.prompt for one in (*text.answers, *text.pairs)]),
            ],
        }
        with Checkpoint(unfinished, identity) as checkpoint:
            fitted = fit_readers(located, readers, text, checkpoint, progress)
            provenance = {k: v for k, v in artefact.provenance.items() if k != "readers"}
            described = {k: {**text_of, **told} for k, text_of in fitted.provenance().items()}
            made = replace(
                artefact,
                readers=fitted.readers,
                maps=fitted.maps,
                table=replace(
                    artefact.table,
                    reader_quality=fitted.quality,
                    reader_cost=fitted.cost,
                    reading_tasks={},  # `trimtab evaluate` measures them
                ),
                provenance={**provenance, **described},
            )
            made.save(out)
    return made


def _reading_text(base: _Base, request: ReadersRequest) -> tuple[ReadingText, dict[str, Any]]:
    """Return the text of a request, and what the artefact's provenance says beside it."""
    told: dict[str, Any] = {"epochs": request.epochs}
    vocab = base.located.shape.vocab
    if request.prompts is None:
        given = _given_text(base, request)
        return make_reading_text(base.tokenizer, vocab, given, request), told
    context = base.located.context
    split = split_prompts(request.prompts, request.prompt_limit, base.tokenizer, context)
    prompts = [*split.fitted, *split.held_out]
    answers = answer_prompts(base.source, prompts, base.kept, base.progress)
    count = len(split.fitted)
    pairs = with_look_ups(answers[:count], base.tokenizer, context, request.seed)
    text = ReadingText(
        [torch.cat([one.prompt, one.answer]) for one in pairs],
        answers[count:],
        token_kinds(base.tokenizer, vocab),
        f"{split.name} and the base's own answers to it, {FACTS}",
        request.epochs,
        pairs,
    )
    return text, {**told, "prompts": split.describe()}


def _given_text(base: _Base, request: ReadersRequest) -> GivenText:
    corpus = request.corpus
    if corpus is not None:
        first, rest = corpus.split(_GIVEN_SHARE)
        rows = first.rows(base.tokenizer, _ROW_TOKENS, request.tokens)
        held_out = rest.rows(base.tokenizer, _ROW_TOKENS, _HELD_OUT_ROWS * _ROW_TOKENS)
        if count_tokens(rows) < 2:
            raise SourceError(f"{corpus.name} holds too little text to fit readers on")
        return GivenText(rows, held_out, corpus.name)
    generated = SelfGeneratedText(base.source, base.kept, base.progress)
    count = -(-int(request.tokens * _TEXT_SHARE) // _ROW_TOKENS)
    return GivenText(
        generated.rows(count, _ROW_TOKENS, _FIRST_SEED + request.seed),
        generated.rows(_HELD_OUT_ROWS, _ROW_TOKENS, _HELD_OUT_SEED),
        SELF_GENERATED,
    )
