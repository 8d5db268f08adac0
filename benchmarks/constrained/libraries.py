"""Two grammar libraries on the same tokens: `python -m benchmarks.constrained.libraries`.

The tokens are the default model's. llguidance and xgrammar (where it is installed) take turns, each
with one thread: milliseconds to compile a schema, microseconds of a mask and of taking a token,
along answers that are valid. With `--suite`, a folder of the JSON Schema Test Suite of draft
2020-12, also how many of its schemas are compiled, and how many of those tell their values right.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.constrained.schemas import SCHEMAS
from benchmarks.support.results import option_parser, save_result
from server.api.constrained.vocabulary import GrammarVocabulary
from server.engine.config import ModelConfig
from server.engine.loading.configured_model import load_configured_model
from telemetry.machine import describe

Value = Any
_VALUES: dict[str, Value] = {
    "person": {"name": "Marie Curie", "age": 66, "country": "France"},
    "list of colours": {"colours": ["red", "green", "blue"]},
    "address": {
        "name": "Rathaus", "address": {"street": "Straße 1", "city": "Berlin", "zip": "10178"},
    },
    "date": {"event": "moon landing", "date": "1969-07-20", "at": "1969-07-20T20:17:00Z"},
    "tree": {"name": "a", "children": [{"name": "b", "children": []}, {"name": "c"}]},
    "optional": {"name": "Tom", "age": 3},
    "uuid": {"id": "123e4567-e89b-12d3-a456-426614174000"},
    "accents": {"größe": "klein", "satz": "Der Himmel ist blau."},
    "free text": {"answer": "Short waves of light are scattered more than long ones. " * 4},
    "review": {
        "title": "Alien", "stars": 5, "mood": "positive", "tags": ["space", "fear"],
        "reviewer": {"name": "Ripley", "verified": True}, "seen": None,
    },
}  # fmt: skip


class Grammar(Protocol):
    """A compiled schema, in the state of one answer."""

    def mask(self) -> None:
        """Compute which tokens may come next."""
        ...

    def take(self, token: int) -> bool:
        """Go on behind a token; return whether it may come."""
        ...

    def ends(self) -> bool:
        """Return whether the text may end here."""
        ...


Compile = Callable[[str], Grammar]
"""Compiles a JSON Schema. Raises an exception for one that is not supported."""


class _LLGuidance:
    """A matcher of llguidance."""

    def __init__(self, tokenizer: Any, schema: str) -> None:  # noqa: ANN401
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_flexible": True}
        )
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if self._matcher.is_error():
            raise ValueError(self._matcher.get_error())
        self._mask = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)

    def mask(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)

    def take(self, token: int) -> bool:
        return bool(self._matcher.consume_token(token))

    def ends(self) -> bool:
        return bool(self._matcher.is_accepting())


class _XGrammar:
    """A matcher of xgrammar."""

    def __init__(self, compiler: Any, schema: str, vocabulary: int) -> None:  # noqa: ANN401
        import xgrammar

        compiled = compiler.compile_json_schema(schema, any_whitespace=True, strict_mode=False)
        self._matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=False)
        self._mask = xgrammar.allocate_token_bitmask(1, vocabulary)

    def mask(self) -> None:
        self._matcher.fill_next_token_bitmask(self._mask)

    def take(self, token: int) -> bool:
        return bool(self._matcher.accept_token(token))

    def ends(self) -> bool:
        return bool(self._matcher.is_completed())


@dataclass(slots=True)
class _Times:
    """Seconds of single calls, by what was called."""

    build: float = 0.0
    compile: list[float] = field(default_factory=list)
    mask: list[float] = field(default_factory=list)
    take: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def main() -> None:
    """Run the benchmark and print its tables."""
    options = option_parser(__doc__)
    options.add_argument("--suite", type=Path, help="the folder tests/draft2020-12 of the suite")
    options.add_argument("--repeats", type=int, default=3)
    arguments = options.parse_args()
    model = load_configured_model(ModelConfig())
    size = model.weights.shape.vocab
    vocabulary = GrammarVocabulary(model.tokenizer, size, model.eos_token_ids)
    times: dict[str, _Times] = {}
    libraries: dict[str, Compile] = {}
    for name, open_library in (("llguidance", _llguidance), ("xgrammar", _xgrammar)):
        started = time.perf_counter()
        try:
            libraries[name] = open_library(vocabulary, model.eos_token_ids)
        except ImportError:
            continue
        times[name] = _Times(build=time.perf_counter() - started)
    for _ in range(arguments.repeats):
        for name, compiler in libraries.items():
            _measure(compiler, vocabulary, times[name])
    coverage = {
        name: _coverage(compiler, vocabulary, arguments.suite)
        for name, compiler in libraries.items()
        if arguments.suite is not None
    }
    console = Console(width=140)
    console.print(describe())
    console.print(_table(times, coverage))
    result = {
        "machine": describe(),
        "times": {name: _summary(found) for name, found in times.items()},
        "refused": {name: sorted(set(found.refused)) for name, found in times.items()},
        "coverage": coverage,
    }
    path = save_result("constrained-libraries", result, arguments.json)
    console.print(f"written to {path}")


def _llguidance(vocabulary: GrammarVocabulary, _: frozenset[int]) -> Compile:
    tokenizer = vocabulary.build()
    return lambda schema: _LLGuidance(tokenizer, schema)


def _xgrammar(vocabulary: GrammarVocabulary, ends: frozenset[int]) -> Compile:
    import xgrammar

    info = xgrammar.TokenizerInfo(
        vocabulary.tokens[: vocabulary.size],
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=vocabulary.size,
        stop_token_ids=sorted(ends),
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    return lambda schema: _XGrammar(compiler, schema, vocabulary.size)


def _measure(compiler: Compile, vocabulary: GrammarVocabulary, times: _Times) -> None:
    """Add the times of all schemas, and of the masks along the values that there are."""
    for name, (_, schema) in SCHEMAS.items():
        started = time.perf_counter()
        try:
            grammar = compiler(json.dumps(schema))
        except Exception:  # of any library
            times.refused.append(name)
            continue
        times.compile.append(time.perf_counter() - started)
        if name not in _VALUES:
            continue
        text = json.dumps(_VALUES[name], ensure_ascii=False)
        for token in vocabulary(text):
            started = time.perf_counter()
            grammar.mask()
            masked = time.perf_counter()
            taken = grammar.take(token)
            times.take.append(time.perf_counter() - masked)
            times.mask.append(masked - started)
            if not taken:
                raise RuntimeError(f"{name}: {text} is refused at token {token}")


def _coverage(compiler: Compile, vocabulary: GrammarVocabulary, suite: Path) -> dict[str, int]:
    """Return how many schemas of the suite are compiled, and how the values of those are told."""
    found = dict.fromkeys(("schemas", "compiled", "right", "too strict", "too lax"), 0)
    for schema, tests in _groups(suite):
        found["schemas"] += 1
        try:
            grammars = [compiler(json.dumps(schema)) for _ in tests]
        except Exception:  # of any library
            continue
        found["compiled"] += 1
        wrong = set()
        for grammar, test in zip(grammars, tests, strict=True):
            text = json.dumps(test["data"], ensure_ascii=False)
            taken = all(grammar.take(token) for token in vocabulary(text)) and grammar.ends()
            if taken != test["valid"]:
                wrong.add("too lax" if taken else "too strict")
        for kind in wrong or {"right"}:
            found[kind] += 1
    return found


def _groups(suite: Path) -> Iterator[tuple[Value, list[dict[str, Any]]]]:
    """Yield each schema that is an object, with its tests."""
    for path in sorted(suite.glob("*.json")):
        for group in json.loads(path.read_text()):
            schema = group["schema"]
            if isinstance(schema, dict):
                yield schema, group["tests"]


def _summary(times: _Times) -> dict[str, float]:
    """Return the figures of one library."""
    return {
        "build_ms": 1e3 * times.build,
        "compile_ms_median": 1e3 * median(times.compile),
        "compile_ms_max": 1e3 * max(times.compile),
        "mask_us_median": 1e6 * median(times.mask),
        "mask_us_mean": 1e6 * mean(times.mask),
        "mask_us_p99": 1e6 * float(np.quantile(times.mask, 0.99)),
        "take_us_mean": 1e6 * mean(times.take),
    }


def _table(times: dict[str, _Times], coverage: dict[str, dict[str, int]]) -> Table:
    """Return a table with a row for each figure and a column for each library."""
    table = Table(title="grammar libraries")
    for column in ("", *times):
        table.add_column(column, justify="left" if not column else "right")
    summaries = {name: _summary(found) for name, found in times.items()}
    for figure in next(iter(summaries.values())):
        table.add_row(figure, *(f"{summary[figure]:.2f}" for summary in summaries.values()))
    table.add_row("refused", *(str(len(set(found.refused))) for found in times.values()))
    for figure in next(iter(coverage.values()), {}):
        table.add_row(f"suite: {figure}", *(str(found[figure]) for found in coverage.values()))
    return table


if __name__ == "__main__":
    main()
