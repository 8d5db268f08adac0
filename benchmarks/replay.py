"""Real traffic against live servers: `python -m benchmarks.replay --trace FILE --prompts FILE`.

Arrivals and answer lengths of a trace, scaled to this machine, with real prompts of about the
trace's lengths, go to a fresh server under each policy, at multiples of what the base can answer:
the same requests for all, in turn, so that a slower machine is slower for all. Refused, dropped and
late requests are lost. What was answered is read again by the base and by the variant that
answered: quality is exp(-KL). With `--profile` the same traffic also goes through the simulation.
With `--llama-cpp` FOLDER `llama-server` is a peer, on the Q4_0 that it runs fastest.
"""

import asyncio
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from benchmarks.answers import Reader
from benchmarks.live import ServerProcess
from benchmarks.machine import RESULTS, given, parser, save
from benchmarks.offered import Answer, Offer, capacity, send
from benchmarks.peers import ggufs
from benchmarks.plots import scatter_by_load
from benchmarks.simulated import simulate
from benchmarks.streams import llama_server
from policies.simulation.profile import Profile, load_profile
from policies.simulation.traffic import Arrival, read_trace, shortened, synthetic
from policies.training.bound import quality_bounds
from pruners.text.sources import read_corpus
from server.engine.load import load_tokenizer
from server.engine.source import DEFAULT_MODEL, resolve_model
from server.offline.sweep import read_prompts
from telemetry.machine import describe

PROMPT, OUTPUT = 80, 60  # medians that the trace is scaled to
LONGEST, LONGEST_PROMPT = 200, 430  # tokens of an answer, and of a prompt in its frame
SLOTS = 8
POLICIES = ("rule", "static:base", "refusing:base", "static:mix-50", "random")
LLAMA = "llama-server Q4_0"


@dataclass(frozen=True, slots=True)
class Objective:
    """Seconds to the first token, per further token, and to the end; all of them must be kept."""

    ttft: float
    tpot: float
    total: float

    def met(self, answer: Answer) -> bool:
        """Whether a client was served in time."""
        if answer.status != 200 or answer.ttft is None or answer.seconds is None:
            return False
        tpot = answer.tpot or 0.0
        return answer.ttft <= self.ttft and tpot <= self.tpot and answer.seconds <= self.total


def requests(
    trace: Path | None, prompts: str, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[Offer]:
    """The trace's requests, each with the prompt of the same rank by length."""
    arrivals = synthetic(count, 0) if trace is None else read_trace(trace, count)
    arrivals = shortened(arrivals, PROMPT, OUTPUT)
    asked = read_prompts(read_corpus(prompts), tokenizer, count)
    sized = sorted((len(one.tokens), one.text) for one in asked)
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


@contextmanager
def serving(policy: str, objective: Objective, llama: Path | None, log: Path) -> Iterator[str]:
    """A fresh server, warm."""
    warm = [Offer(0.2 * i, f"Count to {10 + i}.", 20, 16) for i in range(6)]
    if policy == LLAMA:
        assert llama is not None
        with llama_server(llama, ggufs(llama)["Q4_0"], 2, log) as url:
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


def figures(
    answers: Sequence[Answer], objective: Objective, kl: Sequence[float]
) -> dict[str, float]:
    """Of one run; lost requests count 0 in `quality`, and -0.5 in `quality_lost_half`."""
    met = [objective.met(answer) for answer in answers]
    kept = [math.exp(-loss) for loss, good in zip(kl, met, strict=True) if good]
    served = [a for a in answers if a.status == 200 and a.ttft is not None]
    attained = sum(met) / len(met)
    quality = sum(kept) / len(met)
    ends = [a.offer.at + a.seconds for a in served if a.seconds is not None]
    losses = [loss for loss, good in zip(kl, met, strict=True) if good]
    return {
        "offered": len(answers),
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
    raw: dict[tuple[float, str], list[list[Answer]]] = {cell: [] for cell in cells}
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        console.print(describe())
        rates = []
        for repeat in range(arguments.repeats):
            first = 200 + 700 * repeat
            # Anew each time, with what will be sent: neither the machine nor the trace is the same.
            like = offers[first : first + 400 : 4]
            with serving("static:base", Objective(1e4, 1e4, 1e4), None, log) as url:
                asyncio.run(capacity(url, offers[:16], SLOTS))
                rate = asyncio.run(capacity(url, like, SLOTS))
            rates.append(rate)
            console.print(f"the base answers {rate:.2f} requests/s to {SLOTS} busy clients")
            for load, policy in cells:
                part = window(offers, first, arguments.seconds, rate * load)
                with serving(policy, objective, arguments.llama_cpp, log) as url:
                    answers = asyncio.run(send(url, part))
                raw[load, policy].append(answers)
                good = sum(map(objective.met, answers)) / len(answers)
                console.print(f"{load:g}x {policy}: {good:.2f} of {len(answers)} in time")
    reader = Reader()
    runs = {
        cell: [figures(answers, objective, reader.losses(answers)) for answers in repeats]
        for cell, repeats in raw.items()
    }
    result = {
        "machine": describe(),
        "arguments": {**given(arguments), "prompts": Path(arguments.prompts).name},
        "capacity": rates,
        "runs": {f"{load:g}x {policy}": found for (load, policy), found in runs.items()},
    }
    table(console, runs)
    if profile is not None:
        result |= compared(console, profile, raw, runs, objective)
    scatter_by_load(RESULTS / "replay.png", runs)
    console.print(f"written to {save('replay', result, arguments.json)}")


SHOWN = (
    "attained", "quality", "quality_lost_half", "loss", "worst_quality", "refused", "base",
    "ttft_mean", "tpot_median", "tokens_per_second",
)  # fmt: skip


def table(console: Console, runs: dict[tuple[float, str], list[dict[str, float]]]) -> None:
    """Medians over repeats, and half the range of the attained share."""
    shown = Table(title="medians over repeats; +- half the range of 'attained'")
    for title in ("load", "policy", *SHOWN):
        shown.add_column(title)
    for (load, policy), found in sorted(runs.items()):
        values = [f"{median([one[name] for one in found]):.3f}" for name in SHOWN]
        attained = [one["attained"] for one in found]
        values[0] += f" +-{(max(attained) - min(attained)) / 2:.2f}"
        shown.add_row(f"{load:g}", policy, *values)
    console.print(shown)


def compared(
    console: Console,
    profile: Profile,
    raw: dict[tuple[float, str], list[list[Answer]]],
    runs: dict[tuple[float, str], list[dict[str, float]]],
    objective: Objective,
) -> dict[str, Any]:
    """The simulation's figures beside the live ones, and the fluid bounds."""
    shown = Table(title="simulated over measured")
    for title in ("load", "policy", "ttft", "tokens/s", "attained, simulated", "measured"):
        shown.add_column(title)
    ratios: dict[str, Any] = {}
    for (load, policy), repeats in sorted(raw.items()):
        arrivals = [
            [Arrival(a.offer.at, a.offer.prompt_tokens, a.offer.output) for a in answers]
            for answers in repeats
        ]
        found = simulate(profile, arrivals, policy, objective.ttft, objective.tpot, objective.total)
        if found is None:
            continue
        measured = {
            name: fmean([one[name] for one in runs[load, policy]])
            for name in ("ttft_mean", "tokens_per_second", "attained")
        }
        ratio = {name: found[name] / max(measured[name], 1e-9) for name in measured}
        ratios[f"{load:g}x {policy}"] = {"simulated": found, "measured": measured}
        shown.add_row(
            f"{load:g}", policy, f"{ratio['ttft_mean']:.2f}", f"{ratio['tokens_per_second']:.2f}",
            f"{found['attained']:.3f}", f"{measured['attained']:.3f}",
        )  # fmt: skip
    console.print(shown)
    sent = [answer.offer for repeats in raw.values() for answers in repeats for answer in answers]
    lengths = int(fmean(o.prompt_tokens for o in sent)), int(fmean(o.output for o in sent))
    rows = np.arange(len(profile.prompts.names))

    def bounds(load: float, served: float = 0.0) -> dict[str, float]:
        return quality_bounds(profile, rows, lengths, load, SLOTS, served)

    fluid = {f"{load:g}": bounds(load) for load in sorted({load for load, _ in raw})}
    console.print(f"fluid bound by load: {fluid}")
    return {
        "simulation": ratios,
        "fluid_bound": fluid,
        # With as many in time as each policy had.
        "best_with_as_many": {
            f"{load:g}x {policy}": bounds(load, median(one["attained"] for one in found))
            for (load, policy), found in runs.items()
        },
    }


if __name__ == "__main__":
    main()
