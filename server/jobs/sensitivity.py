"""`trimtab sensitivity`: what prompts say of the loss of each variant, measured on real prompts."""

from dataclasses import replace
from pathlib import Path

from controller.analyzer import BACKENDS, Analyzer
from controller.cross_validation import cross_validate
from controller.sensitivity import FILE, Sensitivity, fit
from pruners.artefact.folder import load_artefact
from pruners.data.corpus import Corpus
from pruners.support.checkpoint import Checkpoint
from pruners.support.errors import UserError
from pruners.support.files import check_file
from pruners.support.progress import progress_bars
from pruners.variant import BASE
from server.engine.loading.load import load_model
from server.engine.loading.source import resolve_model
from server.jobs.prompt_losses import measure_losses, read_prompts

_MIN_PROMPTS = 40


class SensingError(UserError):
    """Too few prompts to learn from. One clear line."""


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
    check_file(folder / FILE)
    source = resolve_model(model)
    loaded = load_model(source, artefact.model_name, artefact=artefact)
    asked = read_prompts(corpus, loaded.tokenizer, limit)
    if len(asked) < _MIN_PROMPTS:
        raise SensingError(
            f"{corpus.name} has {len(asked)} usable prompts; {_MIN_PROMPTS} are needed"
        )
    identity = [artefact.identity(), [one.tokens for one in asked], answer_tokens]
    kept = folder.parent / f".{folder.name}-sensitivity"
    with Checkpoint(kept, identity) as checkpoint:
        with progress_bars() as progress:
            swept = measure_losses(loaded, asked, answer_tokens, checkpoint, progress)
        losses = {
            name: [one.kl[number] for one in swept]
            for number, name in enumerate(loaded.variants)
            if name != BASE
        }
        prompt_loss = [one.prompt for one in swept]
        features, reports = {}, {}
        for backend in reversed(BACKENDS):
            try:
                analyze = Analyzer(backend)
            except ImportError:
                continue
            features[backend] = [analyze(one.text) for one in asked]
            reports[backend] = cross_validate(features[backend], losses, prompt_loss)
        fitted = fit(features[analyzer], losses, artefact.fingerprint, analyzer)
        about = {"prompts": corpus.name, "count": len(asked), "answer_tokens": answer_tokens}
        found = replace(fitted, report={**about, "backends": reports})
        found.save(folder)
    return found
