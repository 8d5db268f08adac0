"""Read fast, write well, in figures: `python -m benchmarks.reading --prompts FILE`.

Each reader of the shipped artefact, beside the variants for the whole request, prompt tokens
dropped between layers, and prompts truncated to the same cost: loss on the base's own answers to
real prompts with documents (Dolly's file, or `{instruction, context}` lines) by prompt length, and
reading tasks: passkeys, lookups, copying, choices over a passage, and files of questions (LAMBADA's
file after `--tasks`). `--quick` runs it on a tiny random model instead, to see that it works.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.plots import draw_losses_by_compute
from benchmarks.reading.examples import LENGTHS, length_name
from benchmarks.reading.losses import measure_losses, summarise
from benchmarks.reading.report import print_losses, print_tasks
from benchmarks.reading.study import StudyPlan, default_study
from benchmarks.reading.tasks import measure_tasks
from benchmarks.reading.tiny import tiny_study
from benchmarks.support.results import option_parser, options_as_json, save_result
from pruners.support.errors import UserError
from pruners.support.progress import progress_bars
from telemetry.machine import describe

_PER_LENGTH = (8, 8, 5, 3)  # prompts of each group of lengths, fewer where they are longer


def main() -> None:
    """Measure all ways of reading, print the tables, and draw the plot."""
    options = _options()
    arguments = options.parse_args()
    if arguments.prompts is None and not arguments.quick:
        options.error("name a file of prompts with --prompts, or try --quick")
    names = [length_name(limit) for limit in (*LENGTHS, LENGTHS[-1] + 1)]
    counts = dict(zip(names, arguments.per_length, strict=True))
    questions = dict.fromkeys(arguments.tasks, arguments.questions)
    try:
        study = (
            tiny_study()
            if arguments.quick
            else default_study(
                StudyPlan(arguments.prompts, counts, questions, arguments.answer_tokens)
            )
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    with progress_bars() as progress:
        losses = measure_losses(study.located, study.ways, study.examples, progress)
        tasks = measure_tasks(study.located, study.ways, study.tasks, progress)
    ways = {
        way.name: {"kind": way.kind, **summarise(losses[way.name], study.examples)}
        for way in study.ways
    }
    print_losses(ways)
    print_tasks(tasks)
    result = {
        "machine": describe(),
        "arguments": {
            **options_as_json(arguments),
            "tasks": [path.name for path in arguments.tasks],
        },
        "prompt_tokens": [example.length for example in study.examples],
        "ways": ways,
        "tasks": tasks,
    }
    path = save_result("reading-quick" if arguments.quick else "reading", result, arguments.json)
    draw_losses_by_compute(path.with_suffix(".png"), ways)
    print(f"written to {path} and {path.with_suffix('.png').name}")


def _options() -> argparse.ArgumentParser:
    options = option_parser(__doc__)
    options.add_argument("--prompts", type=Path)
    options.add_argument(
        "--per-length",
        type=int,
        nargs=len(_PER_LENGTH),
        default=_PER_LENGTH,
        help=f"prompts up to {', '.join(map(str, LENGTHS))} tokens, and longer ones",
    )
    options.add_argument("--answer-tokens", type=int, default=48)
    options.add_argument("--tasks", type=Path, nargs="*", default=[], help="such as LAMBADA's file")
    options.add_argument("--questions", type=int, default=40, help="of each of these files")
    options.add_argument("--quick", action="store_true")
    return options


if __name__ == "__main__":
    main()
