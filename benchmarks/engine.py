"""Decode and prefill beside other engines: `python -m benchmarks.engine [--llama-cpp FOLDER]`.

Everything in one run and in turn. `--llama-cpp` is a folder with `llama-bench` and
`llama-quantize`; OpenVINO GenAI takes part where it is installed. Prints tokens and bytes a second,
the share of the measured copy bandwidth, and how often ours is the other's speed.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bytes_read import step_bytes
from benchmarks.machine import copy_bandwidth, parser, save, spread
from benchmarks.peers import Measure, interleaved, medians, peers
from benchmarks.plots import bars
from pruners.variant import BASE
from server.app import load
from server.jobs.step_timing import decode_step, prefill, zeroed_decoder
from server.settings import JobSettings
from telemetry.machine import describe

ROWS = (1, 2, 4, 8, 16, 32)
CACHED = (128, 2000)  # and the tokens that are decoded stay below the context of 2048 or 8192
PROMPTS = (128, 512)


def main() -> None:
    """Runs the benchmark and prints its table."""
    options = parser(__doc__)
    options.add_argument("--weights", default="auto")
    options.add_argument("--llama-cpp", type=Path)
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()

    model = load(JobSettings(weights=arguments.weights))
    base = model.variants[BASE]
    threads = torch.get_num_threads()
    decoder = zeroed_decoder(model, max(ROWS) * (max(CACHED) + 64))
    ours = f"trimtab {model.weights.precision}"
    jobs: dict[tuple[str, str], Measure] = {}

    def rate(seconds: Measure, tokens: int) -> Measure:
        return lambda: tokens / seconds()

    for cached in CACHED:
        for rows in ROWS:
            step = decode_step(decoder, base, rows, cached)
            jobs[ours, f"decode {rows} x {cached}"] = rate(step, rows)
    for tokens in PROMPTS:
        jobs[ours, f"prefill {tokens}"] = rate(prefill(decoder, base, tokens), tokens)
    others = peers(arguments.llama_cpp, threads)
    for peer in others:
        for cached in CACHED:
            jobs[peer.name, f"decode 1 x {cached}"] = peer.decode(cached)
        for tokens in PROMPTS:
            jobs[peer.name, f"prefill {tokens}"] = peer.prefill(tokens)
    found = interleaved(jobs, arguments.repeats)
    speed = medians(found)
    bandwidth = copy_bandwidth()

    console = Console(width=140)
    console.print(describe())
    table = Table(title=f"{model.name}, {threads} threads, tokens/s (median ± half range)")
    names = [ours, *(peer.name for peer in others)]
    for title in ("", *names, "GB/s", "of copy"):
        table.add_column(title, justify="left" if not title else "right")
    for kind in dict.fromkeys(kind for _, kind in jobs):
        cells = [
            f"{speed[n, kind]:.0f} ±{spread(found[n, kind]):.0%}" if (n, kind) in speed else "-"
            for n in names
        ]
        if kind.startswith("decode"):
            rows, cached = (int(part) for part in kind.split()[1::2])
            read = step_bytes(model, base, rows, cached) * speed[ours, kind] / rows
            cells += [f"{read / 1e9:.1f}", f"{read / bandwidth:.0%}"]
        table.add_row(kind, *cells)
    console.print(table)
    ratios = {
        f"{kind} over {peer.name}": speed[ours, kind] / speed[peer.name, kind]
        for peer in others
        for kind in (*(f"decode 1 x {c}" for c in CACHED), *(f"prefill {t}" for t in PROMPTS))
    }
    for what, ratio in ratios.items():
        console.print(f"{what}: {ratio:.2f}x")
    result = {
        "machine": describe(),
        "threads": threads,
        "copy_bandwidth": bandwidth,
        "tokens_per_second": {name: _of(name, speed) for name in names},
        "spread": {name: _of(name, {k: spread(v) for k, v in found.items()}) for name in names},
        "ratios": ratios,
    }
    path = save(f"engine-{model.weights.precision}", result, arguments.json)
    bars(path.with_suffix(".png"), {n: _of(n, speed) for n in names}, "tokens/s")
    console.print(f"written to {path}")


def _of(name: str, values: dict[tuple[str, str], float]) -> dict[str, float]:
    return {kind: value for (who, kind), value in values.items() if who == name}


if __name__ == "__main__":
    main()
