"""Made-up lists of facts, of which a question looks one up: text to fit and to test readers on.

What they say is drawn at random, so that no model knows it; the same seed gives the same text.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

_PLAIN = (
    "amber", "anchor", "apple", "arrow", "barley", "basket", "beacon", "birch", "bottle", "branch",
    "bridge", "candle", "canvas", "cedar", "chapel", "clover", "copper", "cotton", "cradle",
    "dagger", "desert", "dragon", "ember", "falcon", "feather", "flute", "garden", "ginger",
    "granite", "hammer", "harbor", "hazel", "honey", "island", "ivory", "jacket", "jasper",
    "kettle", "ladder", "lantern", "lemon", "linen", "maple", "marble", "meadow", "mirror",
    "needle", "nickel", "oatmeal", "olive", "orchard", "otter", "paddle", "pebble", "pepper",
    "pillow", "pocket", "quartz", "rabbit", "raven", "ribbon", "river", "saddle", "salmon",
    "shadow", "silver", "sparrow", "spindle", "summit", "thistle", "timber", "tunnel", "turtle",
    "valley", "velvet", "violin", "walnut", "whistle", "willow", "window", "winter", "zipper",
)  # fmt: skip
_STARTS = (
    "Al", "Ber", "Cor", "Dan", "El", "Far", "Gor", "Hel", "Ir", "Jor", "Kal", "Lor", "Mar", "Nor",
    "Os", "Pel", "Quin", "Ros", "Sal", "Tor", "Ul", "Ver", "Wil", "Yar", "Zen",
)  # fmt: skip
_ENDS = (
    "a", "an", "berg", "da", "dor", "en", "eth", "field", "ia", "ik", "in", "ley", "mar", "na",
    "nov", "o", "rick", "sen", "ska", "son", "ton", "us", "vale", "wyn", "y",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """A `line` of a list; a `question` about it, or a `cue` to go on from, and the `answer`."""

    line: str
    question: str
    cue: str
    answer: str


def draw_facts(count: int, seed: int) -> list[Fact]:
    """Return facts of one kind, drawn by the seed, with different keys."""
    rng = random.Random(seed)
    kind = _KINDS[rng.randrange(len(_KINDS))]
    found: dict[str, Fact] = {}
    while len(found) < count:
        fact = kind(rng)
        found.setdefault(fact.cue, fact)
    return list(found.values())


def name_of_thing(rng: random.Random) -> str:
    """Return two lower-case words, such as `amber otter`."""
    return " ".join(rng.sample(_PLAIN, 2))


def _name(rng: random.Random) -> str:
    return rng.choice(_STARTS) + rng.choice(_ENDS)


def _person(rng: random.Random) -> str:
    return f"{_name(rng)} {_name(rng)}"


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))


def _code(rng: random.Random) -> Fact:
    thing, number = name_of_thing(rng), _number(rng)
    cue = f"The code of the {thing} is"
    return Fact(f"{cue} {number}.", f"What is the code of the {thing}?", cue, number)


def _pair(rng: random.Random) -> Fact:
    key, value = name_of_thing(rng), name_of_thing(rng)
    return Fact(f"{key}: {value}", f"What stands behind {key}?", f"{key}:", value)


def _birth(rng: random.Random) -> Fact:
    person, year = _person(rng), str(rng.randrange(1850, 2010))
    day = f"{rng.randrange(1, 29)} {rng.choice(_MONTHS)}"
    cue = f"{person} was born in {_name(rng)} on {day}"
    return Fact(f"{cue} {year}.", f"In which year was {person} born?", cue, year)


def _setting(rng: random.Random) -> Fact:
    key = "_".join(rng.sample(_PLAIN, 2))
    value = rng.choice((str(rng.randrange(100, 10_000)), f'"{rng.choice(_PLAIN)}"'))
    return Fact(f"{key} = {value}", f"To what is {key} set?", f"{key} =", value)


def _row(rng: random.Random) -> Fact:
    person, town, number = _person(rng), _name(rng), _number(rng)
    cue = f"{person}, {town},"
    return Fact(f"{cue} {number}", f"Which number belongs to {person}?", cue, number)


def _price(rng: random.Random) -> Fact:
    thing, price = name_of_thing(rng), f"${rng.randrange(1, 500)}.{rng.randrange(100):02d}"
    cue = f"- {thing}:"
    return Fact(f"{cue} {price}", f"What does the {thing} cost?", cue, price)


_KINDS: tuple[Callable[[random.Random], Fact], ...] = (_code, _pair, _birth, _setting, _row, _price)
