"""What was learned is served by a running server as by one that is started with it."""

import asyncio
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pruners.architecture import locate
from pruners.artefact.folder import Artefact, ArtefactError
from pruners.artefact.table import Cost, Quality, ReaderCost, ReaderQuality, Table
from pruners.correction import LowRankCorrection
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.realization.order import identity_order
from pruners.support.fingerprint import fingerprint
from pruners.variant import Block, depth_spec, width_spec
from server.engine.config import EngineConfig
from server.engine.loading.load import load_model, load_outline, load_transformers
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.learning.offer import Choices, LiveOffer, RunningServer, needs_no_order
from tests.support.models import random_order
from tests.support.tiny import save_tiny

READER = PromptReader("read-50", depth=1, last=4, turn=0)
PROMPT = tuple(range(20, 90))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("offer") / "tiny")


@pytest.fixture(scope="module")
def learned(source):
    """An artefact with a reader, a variant without a layer, and a narrow one in another order."""
    shape = locate(load_outline(source)).shape
    generator = torch.Generator().manual_seed(0)
    order = identity_order(shape)
    depth, width = depth_spec(shape, [1]), width_spec(shape, 0.67)
    bias = torch.randn(shape.hidden, generator=generator).bfloat16()
    none = torch.zeros(shape.hidden, 0), torch.zeros(0, 0)
    rows = 2 * shape.kv_groups * shape.head_dim
    weight = 0.1 * torch.randn(shape.layers - 1, rows, shape.hidden + 1, generator=generator)
    return Artefact(
        "tiny", fingerprint(load_transformers(source, torch.float32)), shape,
        order.ffn.int(), order.kv.int(), (depth,),
        Table(
            quality={depth.name: Quality(0.2, 0.8, 9.0)},
            cost={"base": Cost(9, 1.0, 1.0, 9, 0), depth.name: Cost(7, 0.7, 0.7, 7, 64)},
            kv_quality={128: Quality(0.1, 0.9, 8.0)},
            reader_quality={READER.name: {"all": ReaderQuality(0.05, 0.01, 0.9, 12)}},
            reader_cost={READER.name: ReaderCost(0.5, 10, 10)},
        ),
        {depth.name: {Block(1, "mlp"): LowRankCorrection(bias, *none)}},
        {READER.name: READER}, {1: KVMaps(1, weight).quantised()},
    ), width  # fmt: skip


class Controller:
    """Notes what it is told to choose from."""

    def extend(self, catalogue, policy, own_weights):
        self.told = catalogue, policy, own_weights


def running(model, runner, **changes):
    """A server around a runner whose engine acts at once."""

    def act(action):
        done = Future()
        action()
        done.set_result(None)
        return done

    return RunningServer(
        model, runner, SimpleNamespace(between_steps=SimpleNamespace(add=act)), Controller(),
        choices=lambda grown: Choices(tuple(grown.variants), tuple(grown.readers), {}),
        on_change=lambda: None,
        **changes,
    )  # fmt: skip


def take(server, folder):
    """Take a folder as the thread of the supervisor does, beside the event loop."""

    async def beside():
        offer = LiveOffer(server, asyncio.get_running_loop())
        return await asyncio.to_thread(offer, folder)

    return asyncio.run(beside())


def answers(model, runner):
    """Greedy answers of the base, by the reader, and of each other variant."""
    wanted = [(spec, None) for spec in model.variants.values()]
    wanted += [(model.variants["base"], reader) for reader in model.readers.values()]
    requests = [
        GenerationRequest(
            request_id=f"{spec.name} {reader.name if reader else 'full'}", prompt=PROMPT,
            max_tokens=12, variant=spec, sampling=SamplingParams(temperature=0.0), reader=reader,
        )
        for spec, reader in wanted
    ]  # fmt: skip
    found = answer_all(runner, model.tokenizer, requests)
    return {one.request.request_id: list(one.output) for one in found}


CONFIG = EngineConfig(kv_tokens=2048, speculate=False)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_answers_are_those_of_a_server_that_is_started_with_it(
    source, learned, tmp_path, precision
):
    artefact, _ = learned
    artefact.save(tmp_path / "kept")
    model = load_model(source, "tiny", precision)
    before = answers(model, build_runner(model, CONFIG, None))
    runner = build_runner(model, CONFIG, None)  # whose prefix cache is empty
    server = running(model, runner)
    assert take(server, tmp_path / "kept") == ()
    again = load_model(source, "tiny", precision, artefact)
    started = answers(again, build_runner(again, CONFIG, None))
    offered = answers(model, runner)
    assert offered == started
    assert offered.keys() == {"base full", "depth-2 full", "base read-50"}
    assert offered["base full"] == before["base full"]
    assert len({tuple(tokens) for tokens in offered.values()}) == 3, "each is something else"
    assert server.controller.told == (("base", "depth-2"), ("read-50",), {})
    assert model.artefact.table == artefact.table


def test_variants_that_need_another_order_wait_for_the_next_start(source, learned, tmp_path):
    artefact, width = learned
    order = random_order(artefact.shape)
    table = artefact.table
    replace(
        artefact,
        ffn_order=order.ffn.int(),
        kv_order=order.kv.int(),
        variants=(*artefact.variants, width),
        table=replace(
            table,
            quality={**table.quality, width.name: Quality(0.3, 0.7, 9.0)},
            cost={**table.cost, width.name: Cost(8, 0.8, 0.8, 8, 0)},
        ),
    ).save(tmp_path / "kept")
    model = load_model(source, "tiny", "fp32")
    server = running(model, build_runner(model, CONFIG, None))
    assert take(server, tmp_path / "kept") == (width.name,)
    assert list(model.variants) == ["base", "depth-2"]
    assert model.artefact.table.quality.keys() == {"depth-2"}
    assert torch.equal(model.artefact.ffn_order, artefact.ffn_order), "the order that is served"
    assert take(server, tmp_path / "kept") == (width.name,), "also the next time"


def test_what_is_served_keeps_its_meaning(source, learned, tmp_path):
    artefact, _ = learned
    artefact.save(tmp_path / "kept")
    model = load_model(source, "tiny", "fp32")
    server = running(model, build_runner(model, CONFIG, None))
    take(server, tmp_path / "kept")
    spec = model.variants["depth-2"]
    other = depth_spec(artefact.shape, [2])
    table = replace(artefact.table, quality={"depth-2": Quality(0.9, 0.1, 99.0)})
    replace(artefact, variants=(other,), corrections={}, table=table).save(tmp_path / "kept")
    take(server, tmp_path / "kept")
    assert model.variants["depth-2"] is spec
    assert model.artefact.table.quality["depth-2"].kl == 0.2


def test_readers_are_left_out_if_the_server_has_none(source, learned, tmp_path):
    learned[0].save(tmp_path / "kept")
    model = load_model(source, "tiny", "fp32")
    server = running(model, build_runner(model, CONFIG, None), serves_readers=False)
    take(server, tmp_path / "kept")
    assert model.readers == {}
    assert "depth-2" in model.variants


def test_an_artefact_of_another_model_changes_nothing(source, learned, tmp_path):
    replace(learned[0], fingerprint="f" * 32).save(tmp_path / "kept")
    model = load_model(source, "tiny", "fp32")
    with pytest.raises(ArtefactError, match="was built for"):
        take(running(model, build_runner(model, CONFIG, None)), tmp_path / "kept")
    assert list(model.variants) == ["base"]


def test_only_whole_blocks_need_no_order(source, learned):
    artefact, width = learned
    model = load_model(source, "tiny", "fp32")
    (depth,) = artefact.variants
    assert needs_no_order(depth, model, artefact.corrections[depth.name])
    assert not needs_no_order(width, model, {})
    ranked = LowRankCorrection(torch.zeros(64), torch.zeros(64, 2), torch.zeros(2, 96))
    assert not needs_no_order(depth, model, {Block(0, "mlp"): ranked})
