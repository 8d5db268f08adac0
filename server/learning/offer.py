"""Takes further variants and readers into a running server, without a pause.

Nothing that is served changes or goes: names keep their meaning for as long as the server runs.
What needs the base's units in another order than the one that they have waits for the next start.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from controller import Catalogue, Controller
from policies import Policy
from pruners.artefact.folder import Artefact, load_artefact
from pruners.artefact.table import Table
from pruners.correction import Correction, LowRankCorrection
from pruners.reading.reader import PromptReader, token_kinds
from pruners.realization.order import Order, identity_order
from pruners.variant import BASE, Block, VariantSpec
from server.engine.backends.base import Additions
from server.engine.engine import Engine
from server.engine.loading.load import LoadedModel
from server.engine.runner import Runner
from server.engine.runner_factory import drafter_of, reading_depths

log = logging.getLogger(__name__)

_ENGINE_SECONDS = 60.0  # that a step of the engine may take


@dataclass(frozen=True, slots=True)
class Choices:
    """What a controller needs to offer a model: its actions, a policy, and what variants read."""

    catalogue: Catalogue
    policy: Policy
    own_weights: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """The parts of a server that know what there is to choose from.

    `choices` makes them for the model as it is by then; `on_change` is called in the event loop.
    """

    model: LoadedModel
    runner: Runner
    engine: Engine
    controller: Controller
    choices: Callable[[LoadedModel], Choices]
    on_change: Callable[[], None]
    serves_readers: bool = True


class LiveOffer:
    """Takes an artefact that has grown into a server. Called by one thread, not the event loop."""

    def __init__(self, server: RunningServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop

    def __call__(self, folder: Path) -> tuple[str, ...]:
        """Serve what is new; return the names of variants that have to wait for the next start.

        Raises `ArtefactError` for an artefact that is damaged or of another model, and whatever
        the engine raises; then nothing has changed.
        """
        server, model = self._server, self._server.model
        artefact = load_artefact(folder)
        artefact.check_base(model.fingerprint)
        found = find_additions(model, artefact, server.serves_readers)
        add = model.backend.prepare(
            Additions(
                {spec.name: artefact.corrections.get(spec.name, {}) for spec in found.variants},
                {depth: artefact.maps[depth] for depth in found.depths},
                served_order(model).kv,
            )
        )
        grown = grown_model(model, artefact, found)

        def in_engine() -> None:
            add()
            server.runner.scheduler.reading = reading_depths(grown)
            if found.variants and server.runner.drafter is None:
                server.runner.drafter = drafter_of(grown)

        server.engine.between_steps.add(in_engine).result(_ENGINE_SECONDS)
        asyncio.run_coroutine_threadsafe(self._change(grown), self._loop).result()
        names = [spec.name for spec in found.variants] + [reader.name for reader in found.readers]
        log.info("learned, and offered from now on: %s", ", ".join(names) or "new measurements")
        return found.later

    async def _change(self, grown: LoadedModel) -> None:
        """Let everything in the event loop know of it at once."""
        server, model = self._server, self._server.model
        choices = server.choices(grown)
        model.variants, model.readers = grown.variants, grown.readers
        model.token_kinds, model.artefact = grown.token_kinds, grown.artefact
        server.controller.extend(choices.catalogue, choices.policy, choices.own_weights)
        server.on_change()


@dataclass(frozen=True, slots=True)
class FoundAdditions:
    """What is new in an artefact and can be served: variants, readers, and depths of maps.

    `later` are the names of variants that need another order of units.
    """

    variants: tuple[VariantSpec, ...]
    readers: tuple[PromptReader, ...]
    depths: tuple[int, ...]
    later: tuple[str, ...]


def find_additions(model: LoadedModel, artefact: Artefact, with_readers: bool) -> FoundAdditions:
    """Return what of an artefact a server of the model can serve now, beside what it serves."""
    same_order = served_order(model).digest() == artefact.order.digest()
    new = [spec for spec in artefact.variants if spec.name not in model.variants]
    now = [
        spec
        for spec in new
        if same_order or needs_no_order(spec, model, artefact.corrections.get(spec.name, {}))
    ]
    readers = artefact.readers if with_readers else {}
    return FoundAdditions(
        tuple(now),
        tuple(
            one for name, one in readers.items() if name not in {*model.readers, *model.variants}
        ),
        tuple(sorted({one.depth for one in readers.values()} - model.maps.keys())),
        tuple(spec.name for spec in new if spec not in now),
    )


def served_order(model: LoadedModel) -> Order:
    """Return the order in which the base's units stand."""
    if model.artefact is None:
        return identity_order(model.weights.shape)
    return model.artefact.order


def needs_no_order(
    spec: VariantSpec, model: LoadedModel, corrections: Mapping[Block, Correction]
) -> bool:
    """Return whether a variant is the same in any order of units.

    It has all of a block or nothing of it, and only biases stand for what it leaves out.
    """
    shape = model.weights.shape
    widths = {*((width, shape.kv_groups) for width in spec.kv_groups)}
    widths |= {(width, shape.ffn) for width in spec.ffn}
    return all(width in (0, full) for width, full in widths) and all(
        isinstance(one, LowRankCorrection) and one.rank == 0 and one.entry is None
        for one in corrections.values()
    )


def grown_model(model: LoadedModel, artefact: Artefact, found: FoundAdditions) -> LoadedModel:
    """Return a copy of the model with what is new. It shares weights and backend."""
    served = model.artefact
    variants = {**model.variants, **{spec.name: spec for spec in found.variants}}
    readers = {**model.readers, **{one.name: one for one in found.readers}}
    order = served_order(model)
    table = served_table(Table() if served is None else served.table, artefact.table, found)
    kinds = model.token_kinds
    if readers and kinds is None:
        kinds = token_kinds(model.tokenizer, model.weights.shape.vocab)
    return replace(
        model,
        variants=variants,
        readers=readers,
        token_kinds=kinds,
        artefact=replace(
            artefact,
            ffn_order=order.ffn.int(),
            kv_order=order.kv.int(),
            variants=tuple(spec for name, spec in variants.items() if name != BASE),
            readers=readers,
            table=table,
            corrections={},
            maps={},
        ),
    )


def served_table(served: Table, new: Table, found: FoundAdditions) -> Table:
    """Return what was measured of all that is served: what is known stays, what is new is added."""
    variants = {spec.name for spec in found.variants}
    readers = {one.name for one in found.readers}
    return replace(
        new,
        quality={**served.quality, **{k: v for k, v in new.quality.items() if k in variants}},
        cost={**served.cost, **{k: v for k, v in new.cost.items() if k in {BASE, *variants}}},
        reader_quality={
            **served.reader_quality,
            **{k: v for k, v in new.reader_quality.items() if k in readers},
        },
        reader_cost={
            **served.reader_cost,
            **{k: v for k, v in new.reader_cost.items() if k in readers},
        },
    )
