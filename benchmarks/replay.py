"""Real traffic against live servers: `python -m benchmarks.replay --trace FILE --prompts FILE`.

Arrivals and answer lengths of a trace, scaled to this machine, with real prompts of about the
trace's lengths, go to a fresh server under each policy, the same requests for all, at multiples of
what the base can answer: that is measured before and after every run, on a server of its own, since
a shared machine is not always as fast; where it changed by a fifth meanwhile, nobody knows the load
and the run is done once more. Refused, dropped and late requests are lost.
What was answered is read again by the base and by the variant that answered: quality is exp(-KL).
With `--profile` the same traffic also goes through the simulation, at the speed that the base had.
With `--llama-cpp` FOLDER `llama-server` is a peer, on the Q4_0 that it runs fastest.
"""

import asyncio
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import fmean, median

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from benchmarks.answers import Reader
from benchmarks.machine import given, parser, save
from benchmarks.offered import SLOTS, Objective, Offer, Run, capacity, send
from benchmarks.peers import ggufs
from benchmarks.plots import scatter_by_load
from benchmarks.simulated import simulated
from benchmarks.streams import llama_server
from policies.simulation.profile import load_profile
from policies.simulation.traffic import read_trace, shortened, synthetic
from pruners.data.corpus import read_corpus
from server.engine.loading.load import load_tokenizer
from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from server.jobs.prompt_losses import read_prompts
from server.testing import ServerProcess
from telemetry.machine import describe

PROMPT, OUTPUT = 80, 60  # medians that the trace is scaled to
LONGEST, LONGEST_PROMPT = 200, 400  # tokens of an answer, and of a prompt
PROBED = 48  # requests that tell how fast the base is
STEADY = 0.2  # the change of the base's speed from which a run is done again, once
POLICIES = ("rule", "static:base", "refusing:base", "static:mix-50", "random")
LLAMA = "llama-server Q4_0"


def requests(
    trace: Path | None, prompts: str, tokenizer: PreTrainedTokenizerBase, most: int
) -> list[Offer]:
    """The trace's requests, each with the prompt of the same rank by length.

    What all prompts begin with, the frame of a conversation, is read once and not counted.
    """
    arrivals = synthetic(most, 0) if trace is None else read_trace(trace, most)
    arrivals = shortened(arrivals, PROMPT, OUTPUT)
    asked = read_prompts(read_corpus(prompts), tokenizer, most)
    first, last = min(one.tokens for one in asked), max(one.tokens for one in asked)
    frame = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    sized = sorted((len(one.tokens) - frame, one.text) for one in asked)
    sized = [(size, text) for size, text in sized if size <= LONGEST_PROMPT]
    if not sized:
        raise SystemExit(f"{prompts} holds no prompt of up to {LONGEST_PROMPT} tokens")
    found = []
    order = sorted(range(len(arrivals)), key=lambda i: arrivals[i].prompt)
    for place, index in enumerate(order):
        size, text = sized[place * len(sized) // len(order)]
        one = arrivals[index]
        found.append((index, Offer(one.at, text, size, min(LONGEST, one.output))))
    return [offer for _, offer in sorted(found, key=lambda pair: pair[0])]


def window(offers: Sequence[Offer], first: int, seconds: float, rate: float) -> list[Offer]:
    """Requests from `first` on that arrive in so many seconds at `rate` a second on average."""
    part = offers[first : first + max(8, int(seconds * rate))]
    stretch = len(part) / rate / max(part[-1].at - part[0].at, 1e-9)
    return [Offer((o.at - part[0].at) * stretch, o.prompt, o.prompt_tokens, o.output) for o in part]


def probe(offers: Sequence[Offer], turn: int) -> list[Offer]:
    """Of these requests a few of all lengths. No two turns begin alike, so that no cache helps."""
    sized = sorted(offers, key=lambda offer: offer.output)
    every = max(1, len(sized) // PROBED)
    found = sized[every // 2 :: every][:PROBED]
    found.sort(key=lambda offer: offer.at)
    more = len(str(turn)) + 1  # a token for each digit, and one for the point
    return [
        replace(o, prompt=f"{turn}. {o.prompt}", prompt_tokens=o.prompt_tokens + more)
        for o in found
    ]


@contextmanager
def serving(policy: str, objective: Objective, llama: Path | None, log: Path) -> Iterator[str]:
    """A fresh server, warm."""
    warm = [Offer(0.2 * i, f"Count to {10 + i}.", 20, 16) for i in range(6)]
    if policy == LLAMA:
        assert llama is not None
        with llama_server(llama, ggufs(llama)["Q4_0"], SLOTS, 2, log) as url:
            asyncio.run(send(url, warm))
            yield url
        return
    kept = {"TRIMTAB_TTFT_MS": f"{objective.ttft * 1e3:g}", "TRIMTAB_REFUSE_LATE": "1"}
    server = ServerProcess(
        log=log, TRIMTAB_POLICY=policy, TRIMTAB_FORCE="1", TRIMTAB_SHADOW_SHARE="0", **kept
    )
    server.wait()
    try:
        asyncio.run(send(server.url, warm))
        yield server.url
    finally:
        server.stop()


def figures(run: Run, objective: Objective, kl: Sequence[float]) -> dict[str, float]:
    """Of one run; lost requests count 0 in `quality`, and -0.5 in `quality_lost_half`."""
    answers = run.answers
    met = [objective.met(answer) for answer in answers]
    kept = [math.exp(-loss) for loss, good in zip(kl, met, strict=True) if good]
    served = [a for a in answers if a.status == 200 and a.ttft is not None]
    attained = sum(met) / len(met)
    quality = sum(kept) / len(met)
    ends = [a.offer.at + a.seconds for a in served if a.seconds is not None]
    losses = [loss for loss, good in zip(kl, met, strict=True) if good]
    return {
        "offered": len(answers),
        "load": len(answers) / max(a.offer.at for a in answers) / run.capacity,
        "attained": attained,
        "quality": quality,
        "quality_lost_half": quality - 0.5 * (1 - attained),
        "loss": fmean(losses) if losses else float("nan"),
        "worst_quality": min(kept, default=0.0) if attained == 1 else 0.0,
        "refused": sum(a.status == 503 for a in answers) / len(answers),
        "base": sum(a.status == 200 and a.variant == "base" for a in answers) / len(answers),
        "ttft_mean": fmean([a.ttft for a in served if a.ttft is not None]) if served else 0.0,
        "tpot_median": median([a.tpot or 0.0 for a in served]) if served else 0.0,
        "tokens_per_second": sum(a.offer.output for a in served) / max(ends, default=1.0),
    }


def main() -> None:
    """Runs the replay, prints one table and draws one plot."""
    options = parser(__doc__)
    options.add_argument("--trace", type=Path, help="default: drawn arrivals")
    options.add_argument("--prompts", required=True)
    options.add_argument("--profile", type=Path, help="by `trimtab profile`")
    options.add_argument("--policies", nargs="+", default=list(POLICIES))
    options.add_argument("--calm", nargs="+", default=["rule"], help="those at half load too")
    options.add_argument("--loads", nargs="+", type=float, default=[1.5, 2.0])
    options.add_argument("--seconds", type=float, default=40.0)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--ttft", type=float, default=2.0)
    options.add_argument("--tpot", type=float, default=0.1)
    options.add_argument("--total", type=float, default=20.0)
    options.add_argument("--llama-cpp", type=Path)
    arguments = options.parse_args()

    objective = Objective(arguments.ttft, arguments.tpot, arguments.total)
    profile = None if arguments.profile is None else load_profile(arguments.profile)
    tokenizer = load_tokenizer(resolve_model(DEFAULT_MODEL))
    offers = requests(arguments.trace, arguments.prompts, tokenizer, 4000)
    policies = list(arguments.policies) + [LLAMA] * (arguments.llama_cpp is not None)
    cells = [(0.5, policy) for policy in arguments.calm]
    cells += [(load, policy) for load in arguments.loads for policy in policies]
    raw: dict[tuple[float, str], list[Run]] = {cell: [] for cell in cells}
    probes: list[list[Offer]] = []
    console = Console(width=150)
    console.print(describe())
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("static:base", Objective(1e4, 1e4, 1e4), None, Path(folder) / "base.log") as base,
    ):
        turns = count()

        def speed(like: Sequence[Offer]) -> float:
            return asyncio.run(capacity(base, probe(like, next(turns)), SLOTS))

        for repeat in range(arguments.repeats):
            first = 200 + 700 * repeat
            like = offers[first : first + 8 * PROBED]  # about as many as will be sent
            probes.append(probe(like, 0))
            speed(like)  # warms the server
            before = speed(like)
            for load, policy in cells:
                for again in (False, True):
                    part = window(offers, first, arguments.seconds, before * load)
                    log = Path(folder) / "server.log"
                    with serving(policy, objective, arguments.llama_cpp, log) as url:
                        answers = asyncio.run(send(url, part))
                    began, before = before, speed(like)
                    good = sum(map(objective.met, answers)) / len(answers)
                    console.print(
                        f"{load:g}x {policy}: {good:.2f} of {len(answers)} in time; the base "
                        f"answers {began:.2f} and {before:.2f} requests/s to {SLOTS} busy clients"
                    )
                    if again or abs(before / began - 1) < STEADY:
                        break
                raw[load, policy].append(Run(answers, (began + before) / 2))
    reader = Reader()
    runs = {
        cell: [figures(run, objective, reader.losses(run.answers)) for run in repeats]
        for cell, repeats in raw.items()
    }
    result = {
        "machine": describe(),
        "arguments": {**given(arguments), "prompts": Path(arguments.prompts).name},
        "runs": {f"{load:g}x {policy}": found for (load, policy), found in runs.items()},
    }
    table(console, runs)
    if profile is not None:
        result |= simulated(console, profile, probes, raw, runs, objective)
    path = save("replay", result, arguments.json)
    scatter_by_load(path.with_suffix(".png"), runs)
    console.print(f"written to {path}")


SHOWN = (
    "load", "attained", "quality", "quality_lost_half", "loss", "worst_quality", "refused", "base",
    "ttft_mean", "tpot_median", "tokens_per_second",
)  # fmt: skip


def table(console: Console, runs: dict[tuple[float, str], list[dict[str, float]]]) -> None:
    """Medians over repeats, and half the range of the attained share."""
    shown = Table(title="medians over repeats; +- half the range of 'attained'")
    for title in ("wanted", "policy", *SHOWN):
        shown.add_column(title)
    for (load, policy), found in sorted(runs.items()):
        values = [f"{median([one[name] for one in found]):.3f}" for name in SHOWN]
        attained = [one["attained"] for one in found]
        values[1] += f" +-{(max(attained) - min(attained)) / 2:.2f}"
        shown.add_row(f"{load:g}", policy, *values)
    console.print(shown)


if __name__ == "__main__":
    main()
