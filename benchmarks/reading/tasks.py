"""Reading tasks: whether a way finds what is looked up, which a likelihood does not see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from benchmarks.reading.examples import Example
from benchmarks.reading.ways import DROPPING, VARIANT, Way
from benchmarks.reading.work import RequestWork
from pruners.architecture import LocatedModel
from pruners.support.progress import track

_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Item:
    """A question: possible continuations of one prompt, of which `gold` is the right one.

    Without `gold` there is one continuation, which is right if greedy decoding writes it.
    """

    choices: tuple[Example, ...]
    gold: int | None = None


Tasks = Mapping[str, Sequence[Item]]
"""The questions of each task, by its name."""


@torch.no_grad()
def measure_tasks(
    located: LocatedModel, ways: Sequence[Way], tasks: Tasks, progress: Progress | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Return by task and way the share of right answers with its 95 % interval (Wilson 1927).

    Variants but the first and ways of dropping tokens are left out: they take long.
    """
    ways = _asked(ways)
    results = {}
    for name, items in tasks.items():
        right = dict.fromkeys((way.name for way in ways), 0)
        for item in track(items, f"Answering {name}", progress):
            for way, is_right in _answers(located, ways, item).items():
                right[way] += is_right
        results[name] = {way: _share(count, len(items)) for way, count in right.items()}
    return results


def _asked(ways: Sequence[Way]) -> list[Way]:
    variants = [way for way in ways if way.kind == VARIANT]
    return [way for way in ways if way.kind != DROPPING and way not in variants[1:]]


def _answers(located: LocatedModel, ways: Sequence[Way], item: Item) -> dict[str, bool]:
    """Return which ways answer an item rightly."""
    scores: dict[str, list[tuple[float, bool]]] = {way.name: [] for way in ways}
    for example in item.choices:
        work: dict[str, RequestWork] = {}
        targets = torch.tensor(example.answer)[:, None]
        for way in ways:
            answered = way.answer(example, work)
            work[way.name] = answered.work
            log_p = located.head(answered.hidden).float().log_softmax(-1).cpu()
            likelihood = float(log_p.gather(1, targets).sum())
            scores[way.name].append((likelihood, bool((log_p.argmax(-1) == targets[:, 0]).all())))
    if item.gold is None:
        return {name: found[0][1] for name, found in scores.items()}
    return {name: found.index(max(found)) == item.gold for name, found in scores.items()}


def _share(right: int, items: int) -> dict[str, float]:
    share, z = right / items, _Z95
    spread = share * (1 - share) / items + z * z / (4 * items**2)
    middle, half = share + z * z / (2 * items), z * spread**0.5
    low, high = ((middle + side * half) / (1 + z * z / items) for side in (-1, 1))
    return {"items": items, "right": share, "low": max(0.0, low), "high": min(1.0, high)}
