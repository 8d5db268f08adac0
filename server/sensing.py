"""`trimtab sensitivity`: what prompts say of the loss of each variant, measured on real prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from controller.analyzer import BACKENDS, Analyzer
from controller.judging import judge
from controller.sensitivity import Sensitivity, fit
from pruners.artefact import load_artefact
from pruners.errors import UserError
from pruners.journal import Journal
from pruners.progress import bars
from pruners.sources import Corpus
from pruners.variant import BASE
from server.app import build_runner
from server.engine.load import LoadedModel, load_model
from server.engine.offline import answer_all
from server.engine.rereading import Rereading
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.engine.source import resolve_model
from server.settings import Settings

_BATCH = 16  # prompts answered together
_LONGEST = 512  # tokens of a prompt; longer ones are left out
_LEAST = 40


class SensingError(UserError):
    """Too few prompts to learn from. One clear line."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as the analyzer reads it and as the model does."""

    text: str
    tokens: tuple[int, ...]


def learn_sensitivity(
    model: str, folder: Path, corpus: Corpus, limit: int, answer_tokens: int, analyzer: str
) -> Sensitivity:
    """Fits a predictor to `limit` prompts of a corpus and writes it into the artefact's folder.

    The base answers each prompt at temperature 1; every variant reads prompt and answer, and its KL
    to the base over the answer is the loss. The predictor reads what `analyzer` sees; its report is
    on every backend that is installed. An interrupted call goes on where it stopped. Raises
    `SensingError`, `SourceError`, `ArtefactError` or `ModelSourceError`.
    """
    artefact = load_artefact(folder)
    source = resolve_model(model)
    loaded = load_model(source, artefact.model_name, artefact=artefact)
    asked = _prompts(corpus, loaded.tokenizer, limit)
    if len(asked) < _LEAST:
        raise SensingError(f"{corpus.name} has {len(asked)} usable prompts; {_LEAST} are needed")
    identity = [artefact.identity(), [one.tokens for one in asked], answer_tokens]
    journal = Journal(folder.parent / f".{folder.name}-sensitivity", identity)
    with bars() as progress:
        losses = _measure(loaded, asked, answer_tokens, journal, progress)
    features, reports = {}, {}
    for backend in reversed(BACKENDS):
        try:
            analyze = Analyzer(backend)
        except ImportError:
            continue
        features[backend] = [analyze(one.text) for one in asked]
        reports[backend] = judge(features[backend], losses)
    fitted = fit(features[analyzer], losses, artefact.fingerprint, analyzer)
    about = {"prompts": corpus.name, "count": len(asked), "answer_tokens": answer_tokens}
    found = replace(fitted, report={**about, "backends": reports})
    found.save(folder)
    journal.close()
    return found


def _prompts(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, limit: int) -> list[Asked]:
    """The first usable ones. Conversations end before the first answer."""
    found: list[Asked] = []
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
            found.append(Asked(text, tuple(tokens)))
        if len(found) == limit:
            break
    return found


def _measure(
    model: LoadedModel,
    asked: Sequence[Asked],
    answer_tokens: int,
    journal: Journal,
    progress: Progress,
) -> dict[str, list[float]]:
    """Mean KL of each variant over the base's answer to each prompt."""
    base = model.variants[BASE]
    variants = [spec for name, spec in model.variants.items() if name != BASE]
    room = (_LONGEST + answer_tokens) * (len(variants) + 2 + _BATCH)
    limits = Settings(max_running=_BATCH, kv_tokens=room, speculate=False)
    runner = build_runner(model, limits, None)
    task = progress.add_task("Measuring prompts", total=len(asked))
    rows: list[list[float]] = []
    for first in range(0, len(asked), _BATCH):
        batch = asked[first : first + _BATCH]

        def compute(first: int = first, batch: Sequence[Asked] = batch) -> list[list[float]]:
            requests = [
                GenerationRequest(
                    request_id=str(index),
                    prompt=one.tokens,
                    max_tokens=answer_tokens,
                    variant=base,
                    sampling=SamplingParams(seed=index),
                    eos_token_ids=model.eos_token_ids,
                    min_tokens=2,
                )
                for index, one in enumerate(batch, first)
            ]
            answers = answer_all(runner, model.tokenizer, requests)
            found = []
            for answer in answers:
                reading = Rereading(
                    runner.decoder, answer.request.prompt, answer.output, base, variants, piece=128
                )
                with runner.threads():
                    while reading.advance():
                        pass
                found.append([one.kl for one in reading.result()])
                reading.close()
            return found

        rows += journal.value(f"prompts from {first}", compute)
        progress.update(task, completed=len(rows))
    return {spec.name: [row[i] for row in rows] for i, spec in enumerate(variants)}
