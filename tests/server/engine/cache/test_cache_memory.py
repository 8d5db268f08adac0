"""The memory of the KV cache: taken as it is used, given back while the host is short of it."""

import gc
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruners.architecture import Shape
from pruners.variant import base_spec
from server.engine.cache.arena import Arena
from server.engine.cache.kv_cache import KVCache
from server.engine.cache.lazy_memory import LazyMemory, can_give_back
from server.engine.cache.memory_allowance import MemoryAllowance
from server.engine.cache.memory_relief import MemoryRelief
from telemetry import present
from tests.support.controlled_host import GIB, ControlledHost
from tests.support.driving import reference, run, runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model

CPU = torch.device("cpu")
SHAPE = Shape(layers=2, hidden=64, heads=4, kv_groups=2, head_dim=64, ffn=96, vocab=384)
RESERVE = 0.05 * 16 * GIB

gives_back = pytest.mark.skipif(not can_give_back(), reason="the system takes no pages back")


def resident() -> int:
    """The bytes that this process has in memory, by the kernel's own count."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


class Host(ControlledHost):
    """A host of 16 GiB, of which `spare` bytes are free above the reserve."""

    def set_spare(self, spare: float, stalled: float = 0.0) -> None:
        self.now += 1
        self.snapshot = replace(
            self.snapshot,
            taken_at=self.now,
            memory_available_bytes=present(RESERVE + spare, "test"),
            memory_pressure_ratio=present(stalled, "test"),
        )

    @property
    def allowance(self) -> MemoryAllowance:
        return MemoryAllowance(lambda: self.snapshot)


def test_the_arena_knows_for_which_slots_memory_was_taken():
    """Against one flag a slot, over random allocations and moments at which memory is short."""
    chance, arena, capacity = random.Random(2), Arena(2048), 2048
    taken, used, regions = [False] * capacity, [False] * capacity, []
    asked: list[int] = []

    def ask(slots: int) -> bool:
        asked.append(slots)
        return chance.random() < 0.7

    for _ in range(2000):
        action = chance.random()
        if action < 0.4 and regions:
            start, size = regions.pop(chance.randrange(len(regions)))
            arena.release(start, size)
            used[start : start + size] = [False] * size
        elif action < 0.45:
            found = arena.forget_free()
            flat = [slot for start, size in found for slot in range(start, start + size)]
            assert flat == [s for s in range(capacity) if taken[s] and not used[s]]
            taken = used.copy()
        else:
            size, before = 64 * chance.randint(1, 6), len(asked)
            start = arena.allocate(size, ask)
            if start is not None:
                new = sum(not taken[slot] for slot in range(start, start + size))
                assert new == 0 or asked[-1] == new
                assert len(asked) > before or new == 0
                taken[start : start + size] = used[start : start + size] = [True] * size
                regions.append((start, size))
        assert arena.held == sum(taken)
        assert arena.used == sum(used)


@gives_back
def test_memory_is_taken_when_it_is_written_and_comes_back_as_zeros():
    size = 64 * 2**20
    before = resident()
    memory = LazyMemory((size,), torch.uint8)
    assert resident() - before < size / 8
    memory.tensor.fill_(7)
    assert resident() - before > size * 0.9
    given = memory.give_back(100, size - 200)
    assert size - 3 * 65536 < given < size - 200  # whole pages only
    assert resident() - before < size / 8
    assert memory.tensor[:100].eq(7).all(), "bytes before the first whole page are kept"
    assert memory.tensor[-100:].eq(7).all()
    assert memory.tensor[size // 2] == 0
    memory.tensor.fill_(3)
    assert memory.tensor.eq(3).all()


def test_a_cache_that_no_address_space_holds_is_an_error():
    with pytest.raises(MemoryError, match="no room for"):
        LazyMemory((2**62,), torch.float32)


def test_memory_is_granted_above_the_reserve_and_only_once_between_readings():
    host = Host()
    allowance = host.allowance
    host.set_spare(1000)
    assert allowance.take(600)
    assert not allowance.take(600)
    assert allowance.take(400)
    assert allowance.shortage() == 0
    host.set_spare(600)
    assert allowance.take(600)
    host.set_spare(-50)
    assert not allowance.take(1)
    assert allowance.shortage() == pytest.approx(50)
    host.set_spare(10 * GIB, stalled=0.2)
    assert not allowance.take(1)
    assert allowance.shortage() == float("inf")
    unknown = replace(host.snapshot, memory_pressure_ratio=present(0, "test"))
    host.snapshot = replace(unknown, memory_available_bytes=replace(
        unknown.memory_available_bytes, value=None, reason="not here"))  # fmt: skip
    assert allowance.take(10**15)
    assert allowance.available() is None


def filled(cache: KVCache, slots: int, value: float):
    """Return a sequence whose keys and values are this value."""
    sequence = cache.open()
    assert sequence.reserve(slots)
    sequence.advance(slots)
    for tensor in cache.tensors():
        tensor[:, :, sequence.start : sequence.start + slots] = value
    return sequence


@gives_back
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_under_pressure_prefixes_go_and_what_runs_stays(dtype: torch.dtype, caplog):
    host, given = Host(), []
    host.set_spare(GIB)
    cache = KVCache(SHAPE, 2**16, dtype, CPU)
    cache.allowance = host.allowance
    relief = MemoryRelief(cache, cache.allowance, lambda what, size: given.append((what, size)))
    before = resident()
    running = filled(cache, 4096, 3)
    for number in range(4):
        tokens = list(range(number, number + 4096))
        cache.prefixes.store(base_spec(SHAPE), tokens, bytes(4096), filled(cache, 4096, 5))
    filled(cache, 4096, 1).close()
    full = resident() - before
    assert cache.arena.held == 6 * 4096
    assert full > 5 * 4096 * cache.slot_bytes

    relief.check()
    assert not given, "nothing is short"
    host.set_spare(-1.5 * 4096 * cache.slot_bytes)  # more than the free slots hold
    relief.check()
    assert [what for what, _ in given] == ["free", "prefixes"]
    assert sum(size for _, size in given) > 1.5 * 4096 * cache.slot_bytes
    assert cache.prefixes.slots == 3 * 4096, "only as many as it takes"
    host.set_spare(10 * GIB, stalled=0.5)
    relief.check()
    assert cache.prefixes.slots == 0
    assert cache.arena.held == cache.arena.used == running.size
    assert resident() - before < full / 3
    for tensor in cache.tensors():
        assert tensor[:, :, running.start : running.start + 4096].eq(3).all()
    said = [r.message for r in caplog.records if r.name.endswith("memory_relief")]
    assert said[0] == "memory is short"
    assert "1 stored prefixes were dropped" in said[1]

    assert cache.open().reserve(64) is False, "nothing more is taken"
    assert cache.attainable() == running.size
    assert cache.open().reserve(64, must_grow=True)
    host.set_spare(GIB)
    relief.check()
    assert cache.open().reserve(8192)
    assert cache.attainable() == cache.arena.capacity


def test_requests_under_pressure_are_answered_one_by_one_as_they_would_be_alone():
    """The host is short from the fifth step on: further room only comes from what ends."""
    host = Host()
    runner = runner_of(weights_of(tiny_model()), capacity=4096, running=4)
    base, cache = variants_of(runner.decoder.weights)["base"], runner.scheduler.cache
    host.set_spare(GIB)
    cache.allowance = host.allowance
    relief = MemoryRelief(cache, cache.allowance, lambda what, size: None)
    prompts = [[(7 * i + 3 * n) % 384 for i in range(60 + 9 * n)] for n in range(4)]
    answers = [submit(runner, prompt, base, 40)[1] for prompt in prompts]
    most = steps = 0
    while runner.step():
        steps += 1
        host.set_spare(GIB if steps < 5 else -GIB)
        relief.check()
        if steps == 5:
            most = cache.arena.held
        assert steps < 5 or cache.arena.held <= max(most, 192), "only one that is alone may grow"
    assert [a.tokens for a in answers] == [reference(tiny_model(), p, 40) for p in prompts]
    assert run(runner) == 0
