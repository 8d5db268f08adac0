"""Recorded calls of the kernels in a program without Python, on this processor and on ARM.

The calls are of the portable kernels. All other kernels must come close to what these write: those
of this processor, and those of ARM, built by a cross compiler and run under an emulator.
"""

import gc
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pruners.kv import PageSelection
from server.engine.backends.base import Segment
from server.engine.backends.native import library
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.head_screening import build_head_screen
from server.engine.backends.native.model import head_screen_struct, matrix_struct
from server.engine.backends.native.packing import pack, quantise
from server.engine.cache.eviction import evict
from server.engine.draw import Draw, key_of
from tests.support.native import (
    instruction_sets,
    prompt_and_token_logits,
    reference_and_native,
)
from tests.support.native_vectors import RecordingEngine
from tests.support.reading import logits_in_chunks, marks_of, random_tokens, reader_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not library.is_available(), reason="the native kernels are not built"),
]

ROOT = Path(__file__).parents[5]
PROGRAM = Path(__file__).with_name("check_vectors.cpp")
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
PROCESSORS = {
    "cortex-a53": "neon",
    "neoverse-n1": "neondot",
    "max": "neoni8mm",
}
"""The best kernels of some ARM processors, by what the emulator calls them."""

_DRAWS = [Draw(1.0), Draw(0.7, top_k=20, top_p=0.9), Draw(1.0, top_p=0.8), Draw(0.9, min_p=0.05)]
IN_BF16, IN_INT8 = 0.05, 0.1  # how far the hidden states and cached vectors of a step may be off
TOKENS = random_tokens(170)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Record calls of every kernel; return their files."""
    folder = tmp_path_factory.mktemp("calls")
    gc.collect()
    gc.freeze()  # then only what the calls are made of is looked through
    try:
        record_products(folder)
        record_draws(folder)
        record_steps(folder)
        record_shallow_steps(folder)
        record_page_selection(folder)
    finally:
        gc.unfreeze()
    yield sorted(map(str, folder.iterdir()))
    shutil.rmtree(folder)


def record_products(folder: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    for bits in (4, 8):
        for outputs, inputs in ((64, 96), (50, 70), (17, 33), (16, 1536)):
            engine = RecordingEngine(folder, f"project-{bits}-{outputs}-{inputs}", 0)
            codes = quantise(torch.randn(outputs, inputs, generator=generator), bits)
            bias = torch.randn(outputs, generator=generator)
            for input_major in (False, True):
                packed = pack(codes, bias, input_major)
                for rows in (1, 2, 3, 4, 7, 17):
                    x = torch.randn(rows, inputs, generator=generator)
                    x[-1, 0] = torch.nan if rows == 7 else 3.0
                    engine.project(matrix_struct(packed), x, torch.empty(rows, outputs))


def record_draws(folder: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    for outputs, inputs in ((384, 64), (50, 70), (3000, 96)):
        weight = torch.randn(outputs, inputs, generator=generator)
        codes = quantise(weight, 8)
        packed = pack(codes)
        screen = build_head_screen(codes, torch.randn(9, inputs, generator=generator))
        engine = RecordingEngine(folder, f"draw-{outputs}-{inputs}", 0)
        for rows in (1, 2, 3, 4, 9):
            x = torch.randn(rows, inputs, generator=generator)
            x[-1, 7] = torch.inf if rows == 9 else 3.0
            draws = [_DRAWS[row % len(_DRAWS)]._replace(key=key_of(1, row)) for row in range(rows)]
            for given in (head_screen_struct(screen), None):
                engine.draw(matrix_struct(packed), given, x, [Draw()] * rows)
                engine.draw(matrix_struct(packed), given, 0.4 * x, draws)
                words = (rows, -(-outputs // 32))
                masks = torch.randint(-(2**31), 2**31, words, generator=generator).int()
                masked = [one._replace(allowed=masks[row]) for row, one in enumerate(draws)]
                engine.draw(matrix_struct(packed), given, x, masked)


def recorded(
    folder: Path, name: str, native: NativeDecoder, tolerance: float = IN_BF16
) -> NativeDecoder:
    """Let a decoder record its calls."""
    cache = native.cache
    for tensor in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
        if tensor is not None:
            tensor.zero_()
    native._engine = RecordingEngine(folder, name, tolerance)
    return native


def record_steps(folder: Path) -> None:
    for family, bits in (("llama", 8), ("qwen2", 4), ("qwen3", 8), ("gemma3", 4)):
        _, native, specs = reference_and_native(family, bits)
        prompt_and_token_logits(recorded(folder, f"{family}-{bits}", native), specs)
    for family in ("llama", "gemma3"):
        _, native, specs = reference_and_native(family, 8, torch.int8)
        prompt_and_token_logits(recorded(folder, f"{family}-int8", native, IN_INT8), specs)
    for head_dim in (8, 24, 96):
        _, native, specs = reference_and_native("llama", 4, head_dim=head_dim)
        prompt_and_token_logits(recorded(folder, f"head-{head_dim}", native), specs)


def record_shallow_steps(folder: Path) -> None:
    _, native, specs = reference_and_native("llama", 8)
    recorded(folder, "shallow", native)
    reader, numbers = reader_of(1)
    marks = marks_of(reader, numbers, TOKENS, 0)
    logits_in_chunks(native, specs["base"], TOKENS, marks, 1, [34, 140])


def record_page_selection(folder: Path) -> None:
    _, native, specs = reference_and_native("qwen3", 8)
    recorded(folder, "pages", native)
    cache = native.cache.open(PageSelection(96))
    assert cache.reserve(len(TOKENS))
    for chunk in (TOKENS[:160], TOKENS[160:161], TOKENS[161:162]):
        native.forward([Segment(chunk, cache, specs["base"])])
        evict(cache, native.weights, specs["base"], prompt_read=True)
        cache.page_bounds.bounds[:, :, -(-cache.cached // 16) :] = 0


def check(program: list[str], isa: str, files: list[str]) -> None:
    """Run the calls in files by the kernels of an instruction set."""
    done = subprocess.run([*program, isa, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith(f"{isa}: {len(files)} calls"), done.stdout


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_recorded_calls_are_the_same_on_this_processor(calls, tmp_path):
    built = Path(library.load_library()._name).resolve()
    headers = ROOT / "server/engine/backends/native/csrc"
    program = tmp_path / "check_vectors"
    subprocess.run(
        [
            *("c++", "-O1", "-std=c++20", f"-I{headers}", str(PROGRAM), str(built)),
            *(f"-Wl,-rpath,{built.parent}", "-o", str(program)),
        ],
        check=True,
    )
    for isa in instruction_sets():
        check([str(program)], isa, calls)


@pytest.fixture(scope="module")
def arm_program() -> Path:
    """Return the program for ARM, built if need be."""
    for tool in (CROSS_COMPILER, EMULATOR, "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    program = "build/arm/check_vectors"
    subprocess.run(["make", "--silent", program], cwd=ROOT, check=True)
    return ROOT / program


@pytest.mark.parametrize("processor", PROCESSORS)
def test_recorded_calls_are_the_same_on_arm(processor, arm_program, calls):
    emulated = [EMULATOR, "-cpu", processor, str(arm_program)]
    found = subprocess.run([*emulated, ""], capture_output=True, text=True, check=True)
    best = PROCESSORS[processor]
    assert found.stdout.startswith(f"{best}: 0 calls")
    check(emulated, best, calls)


def test_kernels_that_an_arm_processor_does_not_have_are_refused(arm_program):
    for processor, isa in (("cortex-a53", "neondot"), ("neoverse-n1", "neoni8mm")):
        command = [EMULATOR, "-cpu", processor, str(arm_program), isa]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"this processor has no '{isa}'\n")
