"""From a parsed request to what the engine runs: everything is validated, then built."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controller import RequestPreferences
from policies import Action, Objectives
from pruners.kv import make_kv_budget
from pruners.reading.reader import FULL
from server.api.caller import Caller
from server.api.constrained.compiler import CompiledConstraint, ConstraintCompiler
from server.api.errors import ApiError, misfit
from server.api.model_names import ModelNames
from server.api.prompt.processor import TokenizedPrompt
from server.api.schemas import SamplingBody, TrimtabHints
from server.engine.cache.prefix_cache import Reusable
from server.engine.detokenizer import StopRules, special_tokens
from server.engine.late_decision import EngineAction
from server.engine.loading.load import LoadedModel
from server.engine.pooling import Pooling
from server.engine.queue_terms import QueueTerms
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """An HTTP request whose body is parsed and whose prompts are tokenised.

    Where `max_tokens` is None, an answer may have `default_max_tokens`, or less if the prompt
    leaves less room; if that is None too, all of the room. `variant` comes from a model name like
    `base@mix-80`. `logprobs` is the number of alternatives per written token, `prompt_logprobs`
    that per token of a prompt. `pooling` embeds the prompts. `shown` are special tokens whose text
    belongs to an answer. `constraint` is the form of all answers, if they must have one. Of
    `best_of` answers to a prompt not all are returned.
    """

    prompts: list[TokenizedPrompt]
    body: SamplingBody
    max_tokens: int | None
    default_max_tokens: int | None = None
    variant: str | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    pooling: Pooling | None = None
    shown: frozenset[int] = frozenset()
    constraint: CompiledConstraint | None = None
    best_of: int | None = None

    @property
    def choices(self) -> int:
        """The number of answers that are written to each prompt."""
        return self.best_of or self.body.n or 1


@dataclass(frozen=True, slots=True)
class ValidatedRequest:
    """A parsed request that can be served, with the parameters that its answers share.

    `longest` is the position of its longest prompt.
    """

    parsed: ParsedRequest
    longest: int
    max_tokens: int
    preferences: RequestPreferences
    stop: StopRules

    @property
    def longest_prompt(self) -> TokenizedPrompt:
        """The prompt with the most tokens."""
        return self.parsed.prompts[self.longest]


class RequestBuilder:
    """Validates requests and makes the engine's requests of them.

    `context_tokens` bounds a prompt and its answer together, `max_answers` the answers of one HTTP
    request, `answer_seconds` the time of an answer from the request's arrival on; `kv_scorer` names
    the method by which a KV budget is kept. `names` are those by which the model may be asked for.
    `constraints` compiles the forms that answers must have.
    """

    def __init__(
        self,
        model: LoadedModel,
        names: ModelNames,
        context_tokens: int,
        max_answers: int,
        kv_scorer: str,
        answer_seconds: float | None = None,
    ) -> None:
        self.model = model
        self.names = names
        self.context_tokens = context_tokens
        self.constraints = ConstraintCompiler(model)
        self.max_answers = max_answers
        self._kv_scorer = kv_scorer
        self._answer_seconds = answer_seconds

    def check_answer_count(self, prompts: int, choices: int) -> None:
        """Raise `ApiError` 400 for more answers than one request may ask for."""
        if prompts * choices > self.max_answers:
            raise misfit(f"at most {self.max_answers} answers in one call", "n")

    def validate(self, parsed: ParsedRequest, caller: Caller) -> ValidatedRequest:
        """Find all that can be wrong with a request. Raise `ApiError` 400."""
        body, prompts = parsed.body, parsed.prompts
        self.check_answer_count(len(prompts), parsed.choices)
        if not prompts or not all(prompt.tokens for prompt in prompts):
            raise misfit("the prompt is empty", "prompt")
        longest = max(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
        max_tokens = self._max_tokens(parsed, len(prompts[longest].tokens))
        if body.min_tokens > max_tokens:
            raise misfit(f"min_tokens is above the {max_tokens} tokens to write", "min_tokens")
        self._check_token_ids("stop_token_ids", body.stop_token_ids or ())
        self._check_token_ids("logit_bias", body.logit_bias or ())
        return ValidatedRequest(
            parsed,
            longest,
            max_tokens,
            self._preferences(parsed, caller),
            self._stop_rules(parsed),
        )

    def build(
        self,
        valid: ValidatedRequest,
        action: Action,
        request_id: str,
        reusable: Sequence[Reusable],
        terms: QueueTerms,
    ) -> list[GenerationRequest]:
        """Make one request of the engine for each answer, those of one prompt in a row.

        `reusable` tells for each prompt how many of its tokens are cached; each answer waits on the
        same `terms`.
        """
        parsed, body, engine_action = valid.parsed, valid.parsed.body, self.engine_action(action)
        eos = frozenset[int]() if body.ignore_eos else self.model.eos_token_ids
        ends, grammar = eos | valid.stop.token_ids, parsed.constraint
        requests = []
        for index in range(len(parsed.prompts) * parsed.choices):
            prompt = index // parsed.choices
            request = GenerationRequest(
                request_id=f"{request_id}-{index}",
                prompt=tuple(parsed.prompts[prompt].tokens),
                max_tokens=valid.max_tokens,
                variant=engine_action.variant,
                kv_budget=engine_action.kv_budget,
                sampling=self._sampling(body, index),
                stop=valid.stop,
                eos_token_ids=eos,
                min_tokens=body.min_tokens,
                logprobs=parsed.logprobs,
                prompt_logprobs=parsed.prompt_logprobs,
                pooling=parsed.pooling,
                reusable=reusable[prompt].get((action.variant, action.reader), 0),
                reader=engine_action.reader,
                constraint=None if grammar is None else grammar.matcher(ends),
                terms=terms,
            )
            requests.append(request)
        return requests

    def terms(self, valid: ValidatedRequest, caller: Caller, work: float) -> QueueTerms:
        """Return on what terms each answer waits that takes `work` (see `QueueTerms`)."""
        asked = _seconds(valid.parsed.body.trimtab.timeout_ms)
        bounds = [bound for bound in (asked, self._answer_seconds) if bound is not None]
        ends_at = caller.notes.arrived + min(bounds) if bounds else None
        return QueueTerms(caller.client, work, ends_at)

    def engine_action(self, action: Action) -> EngineAction:
        """Return an action of the controller as the engine takes it. Called from any thread."""
        budget, reader = action.kv_budget, action.reader
        return EngineAction(
            self.model.variants[action.variant],
            None if budget is None else make_kv_budget(budget, self._kv_scorer),
            None if reader is None else self.model.readers[reader],
        )

    def _max_tokens(self, parsed: ParsedRequest, prompt_tokens: int) -> int:
        """Return how many tokens an answer may have. Raise `ApiError` 400 if there is no room."""
        room = self.context_tokens - prompt_tokens
        if room < (1 if parsed.max_tokens is None else parsed.max_tokens):
            to_write = f" and {parsed.max_tokens} to write" if parsed.max_tokens else ""
            raise ApiError(
                400,
                f"this model's maximum context length is {self.context_tokens} tokens; "
                f"the prompt has {prompt_tokens}{to_write}",
                "prompt" if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        if parsed.max_tokens is not None:
            return parsed.max_tokens
        default = parsed.default_max_tokens
        return room if default is None else min(room, default)

    def _stop_rules(self, parsed: ParsedRequest) -> StopRules:
        """Return when answers end, and which special tokens they show: all, if none is skipped."""
        body, shown = parsed.body, parsed.shown
        if body.skip_special_tokens is False:
            shown = special_tokens(self.model.tokenizer)
        strings = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        token_ids = frozenset(body.stop_token_ids or ())
        return StopRules(strings, token_ids, body.include_stop_str_in_output, shown)

    def _check_token_ids(self, field: str, token_ids: Iterable[int]) -> None:
        vocab = self.model.weights.shape.vocab
        unknown = next((token for token in token_ids if token >= vocab), None)
        if unknown is not None:
            raise ApiError(400, f"{field}: no token {unknown}; the vocabulary has {vocab}", field)

    def _preferences(self, parsed: ParsedRequest, caller: Caller) -> RequestPreferences:
        """Return what a request asks of the controller.

        Hints win over the model's name and over headers.
        """
        hints = parsed.body.trimtab
        variant = parsed.variant if hints.variant is None else hints.variant
        if variant is not None and variant not in self.model.variants:
            known = ", ".join(self.model.variants)
            raise ApiError(400, f"no variant '{variant}'; there are: {known}", "trimtab.variant")
        if hints.kv_budget is not None:
            try:
                make_kv_budget(hints.kv_budget, self._kv_scorer)
            except ValueError as error:
                raise misfit(str(error), "trimtab.kv_budget") from error
        objectives = Objectives(
            ttft=_seconds(caller.ttft_ms if hints.ttft_ms is None else hints.ttft_ms),
            tpot=_seconds(caller.tpot_ms if hints.tpot_ms is None else hints.tpot_ms),
            max_loss=hints.max_loss,
            deadline=_seconds(hints.deadline_ms),
        )
        return RequestPreferences(objectives, variant, hints.kv_budget, self._reader(hints, parsed))

    def _reader(self, hints: TrimtabHints, parsed: ParsedRequest) -> str | None:
        """Return the reader that a request names, None for any. Raise `ApiError` 400.

        Only a prompt that is read in full has log-probabilities.
        """
        wanted = hints.read
        if wanted is not None and wanted != FULL and wanted not in self.model.readers:
            known = ", ".join([FULL, *self.model.readers])
            raise ApiError(400, f"no reader '{wanted}'; there are: {known}", "trimtab.read")
        if parsed.prompt_logprobs is None:
            return wanted
        if wanted not in (None, FULL):
            message = f"a prompt with log-probabilities is read in full, not by '{wanted}'"
            raise misfit(message, "trimtab.read")
        return FULL

    def _sampling(self, body: SamplingBody, index: int) -> SamplingParams:
        """Return one answer's sampling parameters.

        As in vLLM, the request's values win over the model's generation config, and that over
        OpenAI's defaults.
        """

        def pick(name: str, default: float) -> float:
            requested = getattr(body, name)
            if requested is not None:
                return float(requested)
            return self.model.sampling_defaults.get(name, default)

        return SamplingParams(
            temperature=pick("temperature", 1.0),
            top_p=pick("top_p", 1.0),
            top_k=max(0, int(pick("top_k", 0))),
            min_p=pick("min_p", 0.0),
            repetition_penalty=pick("repetition_penalty", 1.0),
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=body.logit_bias or {},
            # Answers to one seeded request differ from each other, and each is reproducible.
            seed=None if body.seed is None else body.seed + index,
        )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
