"""Makes grammars of constraints, beside the event loop, bounded in size and work, and cached."""

import json
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from server.api.bounded_worker import BoundedWorker
from server.api.constrained.constraint import OutputConstraint
from server.api.constrained.matcher import GrammarMatcher
from server.api.constrained.vocabulary import GrammarVocabulary
from server.api.errors import ApiError, misfit
from server.engine.constraint import ConstraintError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    from server.engine.loading.load import LoadedModel

_CACHED = 64  # grammars
_CACHED_CHARACTERS = 2**22  # of their sources
_BLANKS = r"( |\n[ \t]{0,32})"  # at most once where JSON may have blanks: none goes on for ever
_MESSAGE = 500  # characters of an error message
_TRIED_TOKENS = 4
# Else the library would ask the model's tokenizer how text is split that must come anyway.
_OPTIONS = '%llguidance {"no_forcing": true}'


@dataclass(frozen=True, slots=True)
class CompiledConstraint:
    """A grammar that is ready for any number of answers."""

    pristine: "LLMatcher"
    vocabulary: GrammarVocabulary
    last_resort: frozenset[int]

    def matcher(self, end_tokens: Collection[int]) -> GrammarMatcher:
        """Return the state of a new answer, which `end_tokens` end where it is whole."""
        return GrammarMatcher(
            self.pristine.deep_copy(), self.vocabulary, end_tokens, self.last_resort
        )


class ConstraintCompiler:
    """Compiles constraints for one model. All methods are called in the event loop."""

    def __init__(self, model: "LoadedModel") -> None:
        self._model = model
        self._worker = BoundedWorker("grammars")
        self._tokenizer: tuple[LLTokenizer, GrammarVocabulary] | None = None
        self._cache: OrderedDict[OutputConstraint, CompiledConstraint] = OrderedDict()

    async def compile(self, constraint: OutputConstraint | None) -> CompiledConstraint | None:
        """Return the grammar of a constraint, None for none.

        Raise `ApiError`: 400 for what is wrong, not supported or too large, 503 if too many wait.
        """
        if constraint is None:
            return None
        key = replace(constraint, param="")
        if key not in self._cache:
            size = len(constraint.source)
            self._cache[key] = await self._worker.run(lambda: self._compiled(constraint), size)
        self._cache.move_to_end(key)
        found = self._cache[key]
        while len(self._cache) > _CACHED or self._characters() > _CACHED_CHARACTERS:
            self._cache.popitem(last=False)
        return found

    def _characters(self) -> int:
        return sum(len(one.source) for one in self._cache)

    def _compiled(self, constraint: OutputConstraint) -> CompiledConstraint:
        """Compile a constraint. Called in the worker's thread. Raise `ApiError` 400."""
        from llguidance import LLMatcher

        if self._tokenizer is None:
            model = self._model
            vocabulary = GrammarVocabulary(
                model.tokenizer, model.weights.shape.vocab, model.eos_token_ids
            )
            self._tokenizer = vocabulary.build(), vocabulary
        tokenizer, vocabulary = self._tokenizer
        try:
            grammar = _grammar(constraint)
        except ValueError as error:
            raise _refused(constraint, str(error)) from error
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())
        if matcher.is_error():
            raise _refused(constraint, matcher.get_error())
        last_resort = frozenset(self._model.eos_token_ids)
        compiled = CompiledConstraint(matcher, vocabulary, last_resort)
        try:
            _try_out(compiled)
        except ConstraintError as error:
            raise _refused(constraint, str(error)) from error
        return compiled


def _try_out(compiled: CompiledConstraint) -> None:
    """Write a few tokens, since some limits show only then. Raise `ConstraintError`."""
    trial = GrammarMatcher(compiled.pristine.deep_copy(), compiled.vocabulary, (), ())
    for position in range(_TRIED_TOKENS):
        tokens = np.unpackbits(trial.masks(()).numpy().view(np.uint8), bitorder="little")
        if not tokens.any():
            if position == 0:
                raise ConstraintError("it allows no text")
            return
        trial.accept(int(tokens.argmax()))
        if trial.ended:
            return
    compiled.pristine.compute_bitmask()  # what is found here is shared by all answers


def _grammar(constraint: OutputConstraint) -> str:
    """Return a constraint in the library's notation. Raise `ValueError`."""
    from llguidance import regex_to_lark
    from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

    if constraint.kind == "grammar":
        try:
            return f"{any_to_lark(constraint.source)}\n{_OPTIONS}"
        except GbnfToLarkError as error:
            raise ValueError(str(error)) from error
    if constraint.kind == "regex":
        start = f"/{regex_to_lark(constraint.source)}/" if constraint.source else '""'
    elif constraint.kind == "choice":
        start = " | ".join(
            json.dumps(text, ensure_ascii=False) for text in json.loads(constraint.source)
        )
    else:
        schema = json.loads(constraint.source or '{"type":"object"}')
        schema["x-guidance"] = {"whitespace_flexible": constraint.blanks}
        if constraint.blanks:
            schema["x-guidance"]["whitespace_pattern"] = _BLANKS
        start = f"%json {json.dumps(schema, ensure_ascii=False)}"
    return f"{_OPTIONS}\nstart: {start}"


def _limits() -> "LLParserLimits":
    """Return what bounds the time and memory of a grammar, in steps of work."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_grammar_size=10_000,
        max_lexer_states=20_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        verbose_errors=False,
    )


def _refused(constraint: OutputConstraint, reason: str) -> ApiError:
    """Return the error for a constraint that cannot be compiled."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    message = " ".join(lines)[:_MESSAGE] or "it cannot be compiled"
    return misfit(f"{constraint.param}: {message}", constraint.param)
