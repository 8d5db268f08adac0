"""What a constraint costs at eight streams: `python -m benchmarks.constrained`.

The engine alone, on the default model: the same prompts and numbers of tokens, without a constraint
and with one, in turn. `text` is a regular expression that allows nearly every token, so that each
step draws from nearly the whole head and its answers are as long as without; `JSON` is a schema
whose texts have no end. Prints tokens a second of the steps that write, with speculation off, so
that each step writes one token for each stream.
"""

import asyncio
import json
import time

from rich.console import Console
from rich.table import Table

from benchmarks.support.peers import interleaved, medians
from benchmarks.support.results import option_parser, save_result, spread
from pruners.variant import BASE
from server.api.constrained.compiler import CompiledConstraint, ConstraintCompiler
from server.api.constrained.constraint import OutputConstraint
from server.engine.config import EngineConfig, ModelConfig
from server.engine.detokenizer import Detokenizer, StopRules
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence
from telemetry.machine import describe

STREAMS, PROMPT, TOKENS = 8, 64, 128
_ITEM = {"type": "object", "properties": {"title": {"type": "string"}, "note": {"type": "string"}}}
_SCHEMA = {"type": "array", "items": {**_ITEM, "required": ["title", "note"]}, "minItems": 500}
CONSTRAINTS = {
    "none": None,
    "text": OutputConstraint("regex", r"(.|\n)*"),
    "JSON": OutputConstraint("json_schema", json.dumps(_SCHEMA)),
}
SAMPLINGS = {
    "likeliest": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=1.0, seed=1),
    "top-p .9": SamplingParams(temperature=1.0, top_p=0.9, seed=1),
}


def main() -> None:
    """Run the benchmark and print its table."""
    options = option_parser(__doc__)
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    model = load_configured_model(ModelConfig())
    runner = build_runner(model, EngineConfig(max_running=STREAMS, speculate=False), None)
    grammars = asyncio.run(_compiled(model))
    found = interleaved(
        {
            (kind, constraint): lambda kind=kind, grammar=grammar: _rate(  # type: ignore[misc]
                runner, model, SAMPLINGS[kind], grammar
            )
            for kind in SAMPLINGS
            for constraint, grammar in grammars.items()
        },
        arguments.repeats,
    )
    speeds = medians(found)
    console = Console(width=120)
    console.print(describe())
    table = Table(title=f"{STREAMS} streams, tokens/s (median ± half range), and the cost")
    for column in ("", *CONSTRAINTS, "text costs", "JSON costs"):
        table.add_column(column, justify="left" if not column else "right")
    costs: dict[str, dict[str, float]] = {}
    for kind in SAMPLINGS:
        plain = speeds[kind, "none"]
        costs[kind] = {name: 1 - speeds[kind, name] / plain for name in ("text", "JSON")}
        cells = [
            f"{speeds[kind, name]:.0f} ±{spread(found[kind, name]):.0%}" for name in CONSTRAINTS
        ]
        table.add_row(kind, *cells, *(f"{cost:.1%}" for cost in costs[kind].values()))
    console.print(table)
    result = {
        "machine": describe(),
        "streams": STREAMS,
        "tokens_per_second": {", ".join(key): value for key, value in speeds.items()},
        "spread": {", ".join(key): spread(values) for key, values in found.items()},
        "cost": costs,
    }
    console.print(f"written to {save_result('constrained', result, arguments.json)}")


async def _compiled(model: LoadedModel) -> dict[str, CompiledConstraint | None]:
    compiler = ConstraintCompiler(model)
    return {name: await compiler.compile(constraint) for name, constraint in CONSTRAINTS.items()}


def _rate(
    runner: Runner,
    model: LoadedModel,
    sampling: SamplingParams,
    grammar: CompiledConstraint | None,
) -> float:
    """Return the tokens a second that all streams write together, once all prompts are read."""
    sequences = []
    for stream in range(STREAMS):
        prompt = tuple((37 * i + 911 * stream) % 40_000 + 300 for i in range(PROMPT))
        request = GenerationRequest(
            request_id=str(stream),
            prompt=prompt,
            max_tokens=TOKENS,
            variant=model.variants[BASE],
            sampling=sampling,
            constraint=None if grammar is None else grammar.matcher(()),
        )
        detokenizer = Detokenizer(model.tokenizer, StopRules(), prompt)
        sequences.append(Sequence(request, detokenizer, lambda delta: None))
        runner.scheduler.add(sequences[-1])
    while not all(sequence.output for sequence in sequences):
        runner.step()
    before = sum(len(sequence.output) for sequence in sequences)
    started = time.perf_counter()
    while runner.step():
        pass
    seconds = time.perf_counter() - started
    written = sum(len(sequence.output) for sequence in sequences)
    if written < STREAMS * TOKENS:
        raise RuntimeError("an answer ended early")
    return (written - before) / seconds


if __name__ == "__main__":
    main()
