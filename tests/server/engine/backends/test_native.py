"""The native kernels against PyTorch on the same rounded weights, by instruction set."""

import itertools

import pytest
import torch

from pruners.variant import base_spec
from server.engine.backends.base import Segment
from server.engine.backends.native import decoder as native_decoder
from server.engine.backends.native import library as native_library
from server.engine.backends.native.decoder import NativeDecoder, add_head_screen
from server.engine.backends.native.head_screening import build_head_screen
from server.engine.backends.native.model import head_screen_of, matrix_of
from server.engine.backends.native.packed_corrections import pack_corrections
from server.engine.backends.native.packed_weights import pack_weights, round_weights
from server.engine.backends.native.packing import pack, quantise
from server.engine.backends.pytorch.corrections import convert_corrections
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.cache.kv_cache import KVCache
from tests.support.corrections import corrections_by_name, specs_of
from tests.support.driving import weights_of
from tests.support.tiny import FAMILIES, VOCAB, tiny_model

pytestmark = pytest.mark.skipif(
    native_library.library() is None, reason="the native kernels are not built"
)
CPU = torch.device("cpu")
PROMPTS = [[5, 9, 33, 7], list(range(10, 60)), [3], [(7 * i) % VOCAB for i in range(290)]]


def instruction_sets() -> list[str]:
    found = []
    for isa in ("avx512bf16", "avx512", "avxvnni", "avx2", "portable"):
        try:
            found.append(native_library.NativeEngine(1, isa).isa)
        except RuntimeError:
            continue
    return found


def in_int8(x: torch.Tensor) -> torch.Tensor:
    """What the kernels make of their inputs: 127 steps to the largest of each 32."""
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((groups / scale).round() * scale).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("isa", instruction_sets() or [None])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("input_major", [False, True])
def test_products_equal_those_of_the_rounded_numbers(isa, bits, input_major):
    generator = torch.Generator().manual_seed(3)
    for threads in (1, 3):
        engine = native_library.NativeEngine(threads, isa)
        for outputs, inputs in ((64, 96), (50, 70), (17, 33), (16, 1536), (48, 600)):
            for rows in (0, 1, 3, 4, 5, 12, 17, 70):
                weight = torch.randn(outputs, inputs, generator=generator)
                bias = torch.randn(outputs, generator=generator)
                codes = quantise(weight, bits)
                matrix = pack(codes, bias, input_major)
                x = torch.randn(rows, inputs, generator=generator)
                y = torch.empty(rows, outputs)
                engine.project(matrix_of(matrix), x, y)
                expected = in_int8(x).double() @ codes.values().double().t() + bias
                torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", instruction_sets() or [None])
@pytest.mark.parametrize("biased", [False, True])
def test_the_best_output_is_the_arg_max_of_the_product(isa, biased):
    generator = torch.Generator().manual_seed(5)
    for threads in (1, 3):
        engine = native_library.NativeEngine(threads, isa)
        for outputs, inputs in ((384, 64), (50, 70), (17, 33), (5000, 96)):
            weight = torch.randn(outputs, inputs, generator=generator)
            weight[outputs // 2] = weight[outputs // 3]  # a tie, if it is the highest
            bias = torch.randn(outputs, generator=generator) if biased else None
            codes = quantise(weight, 8)
            packed = pack(codes, bias)
            coarse = build_head_screen(codes, torch.randn(9, inputs, generator=generator))
            matrix = matrix_of(packed)
            for rows in (1, 3, 9):
                x = torch.randn(rows, inputs, generator=generator)
                x[0] = 9 * weight[outputs // 3]
                x[-1, : inputs // 2] = 0
                y = torch.empty(rows, outputs)
                engine.project(matrix, x, y)
                for given in (head_screen_of(coarse), None):
                    assert engine.best(matrix, given, x) == y.argmax(-1).tolist()


@pytest.mark.parametrize("isa", instruction_sets() or [None])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_no_number_stays_so_and_in_its_own_row(isa, bits):
    generator = torch.Generator().manual_seed(6)
    engine = native_library.NativeEngine(2, isa)
    codes = quantise(torch.randn(3000, 70, generator=generator), bits)
    packed = pack(codes)
    seen = build_head_screen(codes, torch.randn(9, 70, generator=generator))
    matrix, coarse = matrix_of(packed), head_screen_of(seen) if bits == 8 else None
    for at, bad in itertools.product((0, 13, 69), (torch.nan, -torch.nan, torch.inf, -torch.inf)):
        x = torch.randn(6, 70, generator=generator)
        y, alone = torch.empty(6, 3000), torch.empty(6, 3000)
        engine.project(matrix, x, alone)
        x[2, at] = x[5, at] = bad
        engine.project(matrix, x, y)
        assert not y[[2, 5]].isfinite().any()
        assert torch.equal(y[[0, 1, 3, 4]], alone[[0, 1, 3, 4]])
        expected = alone.argmax(-1).tolist()
        expected[2] = expected[5] = -1
        for given in (coarse, None):
            assert engine.best(matrix, given, x) == expected


@pytest.mark.parametrize("isa", instruction_sets() or [None])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_token_behind_the_vocabulary_reads_nothing(isa, bits, monkeypatch):
    monkeypatch.setattr(native_decoder, "check_rows", lambda *_: None)
    packed = pack_weights(weights_of(tiny_model()), bits)
    decoder = NativeDecoder(packed, KVCache(packed.shape, 256, torch.bfloat16, CPU))
    decoder._engine = native_library.NativeEngine(2, isa)
    base = base_spec(packed.shape)
    for token in (-1, -(2**31), VOCAB, 2**31 - 1):
        rows = []
        for tokens in ([5, token], [5, 6]):
            cache = decoder.cache.open()
            assert cache.reserve(2)
            rows.append(Segment(tokens, cache, base))
        hidden = decoder.forward(rows)
        assert hidden.isfinite().all(1).tolist()[1:] == [False, True, True]
        assert [best >= 0 for best in decoder.argmax(hidden)[1:]] == [False, True, True]
        for segment in rows:
            segment.cache.close()


def test_a_preview_is_no_further_off_than_it_says():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3000, 150, generator=generator) + torch.randn(150, generator=generator)
    codes = quantise(weight * torch.linspace(0.5, 2, 3000)[:, None], 8)
    x = torch.randn(200, 150, generator=generator).cumsum(0)
    found = build_head_screen(codes, x)
    z = torch.nn.functional.pad(x, (0, 10))[:, found.order.long()] * found.factor
    scale, blocks = found.scale[:3000], found.planes.repeat_interleave(32)
    exact = codes.values() @ x.T - (found.mean[:150] @ x.T)
    rough = scale[:, None] * ((coded(found, 3000) - (4.0**blocks - 1) / 2) @ z.T)
    bound = (z.square().unflatten(1, (-1, 32)).sum(2) @ found.doubt).sqrt()
    bound = bound * found.spread[:3000, None]
    assert 0.4 < ((exact - rough).abs() / bound).max() < 0.9  # neither too bold nor of no use


@pytest.mark.parametrize("isa", instruction_sets() or [None])
def test_one_input_may_say_more_than_all_others(isa):
    """Then errors are not a sum of many: one far out is clipped by much, and must be found."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(6000, 128, generator=generator)
    weight[1234, 100] = 9.0
    codes = quantise(weight, 8)
    like = torch.ones(1, 128)
    like[:, 100] = 1e-3  # seems to say nothing
    x = torch.full((1, 128), 1e-4)
    x[:, 100] = 50.0
    packed, coarse = pack(codes), build_head_screen(codes, like)
    engine = native_library.NativeEngine(2, isa)
    found = engine.best(matrix_of(packed), head_screen_of(coarse), x)
    assert found == (codes.values() @ x[0]).argmax(0, keepdim=True).tolist() == [1234]


def coded(found, outputs: int) -> torch.Tensor:
    """The codes of a head screen, by the description in `native.h`."""
    planes = found.planes.tolist()
    blocks = found.data.unflatten(0, (-1, sum(planes), 2, 16, 4))  # lines of 16 outputs
    digits = torch.stack([blocks >> 2 * t & 3 for t in range(4)], dim=-2).transpose(2, 3)
    digits = digits.flatten(3).float()  # [output blocks, planes, 16, 32]
    parts, at = [], 0
    for count in planes:
        weights = 4.0 ** torch.arange(count - 1, -1, -1)
        parts.append((digits[:, at : at + count] * weights[:, None, None]).sum(1))
        at += count
    return torch.cat(parts, dim=2).flatten(0, 1)[:outputs]


def decoders(family: str, bits: int, cache_dtype: torch.dtype = torch.bfloat16, head_dim: int = 16):
    """PyTorch's on rounded weights and the native one, with the same variants and corrections."""
    rounded = round_weights(weights_of(tiny_model(family, head_dim=head_dim)), bits)
    packed = pack_weights(weights_of(tiny_model(family, head_dim=head_dim)), bits)
    shape = packed.shape
    specs = specs_of(shape)
    corrections = corrections_by_name(specs, shape)
    reference = PyTorchDecoder(
        rounded, KVCache(shape, 2048, torch.float32, CPU), convert_corrections(rounded, corrections)
    )
    native = NativeDecoder(
        packed, KVCache(shape, 2048, cache_dtype, CPU), pack_corrections(packed, corrections)
    )
    return reference, native, specs


@pytest.mark.parametrize("count", [1, 4, 5, 150])
def test_the_best_tokens_of_any_number_of_rows(count):
    _, decoder, specs = decoders("llama", 8)
    add_head_screen(decoder.weights)
    decoder = NativeDecoder(decoder.weights, decoder.cache)
    prompt = PROMPTS[3][:count]
    cache = decoder.cache.open()
    assert cache.reserve(count)
    hidden = decoder.forward([Segment(prompt, cache, specs["base"])])
    assert decoder.argmax(hidden) == decoder.logits(hidden).argmax(-1).tolist()


def prompts_and_a_token(decoder, specs) -> torch.Tensor:
    """Logits of a mixed batch of prompts and of one decoded token after each."""
    names = list(specs)
    segments = []
    for index, prompt in enumerate(PROMPTS):
        cache = decoder.cache.open()
        assert cache.reserve(len(prompt) + 2)
        segments.append(Segment(prompt, cache, specs[names[index % len(names)]]))
    found = [decoder.logits(decoder.forward(segments))]
    after = [Segment([9], s.cache, s.variant) for s in segments]
    found.append(decoder.logits(decoder.forward(after)))
    for segment in segments:
        segment.cache.close()
    return torch.cat(found)


def kl(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float(
        torch.nn.functional.kl_div(
            found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_step_is_close_to_pytorch_for_all_variants_at_once(family, bits):
    reference, native, specs = decoders(family, bits)
    for order in (specs, dict(reversed(specs.items()))):
        expected = prompts_and_a_token(reference, order)
        assert kl(expected, prompts_and_a_token(native, order)) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_int8_cache_is_close_too(family):
    reference, native, specs = decoders(family, 8, torch.int8)
    expected = prompts_and_a_token(reference, specs)
    assert kl(expected, prompts_and_a_token(native, specs)) < 2e-3


@pytest.mark.parametrize("head_dim", [8, 24, 32, 64, 96])
def test_heads_of_other_sizes_are_close_too(head_dim):
    reference, native, specs = decoders("llama", 8, head_dim=head_dim)
    expected = prompts_and_a_token(reference, specs)
    for isa in instruction_sets():
        native._engine = native_library.NativeEngine(2, isa)
        assert kl(expected, prompts_and_a_token(native, specs)) < 1e-3, isa


@pytest.mark.parametrize(("family", "head_dim"), [("llama", 16), ("llama", 64), ("gemma3", 16)])
def test_a_row_is_the_same_bit_for_bit_whatever_it_is_batched_with(family, head_dim):
    _, native, specs = decoders(family, 4, head_dim=head_dim)
    mixed = prompts_and_a_token(native, specs)
    names, alone = list(specs), []
    after = []
    for index, prompt in enumerate(PROMPTS):
        cache = native.cache.open()
        assert cache.reserve(len(prompt) + 2)
        spec = specs[names[index % len(names)]]
        rows = [
            native.logits(native.forward([Segment(prompt[at : at + 48], cache, spec)]))
            for at in range(0, len(prompt), 48)  # a prompt in chunks is the same, too
        ]
        alone.append(torch.cat(rows))
        after.append(native.logits(native.forward([Segment([9], cache, spec)])))
        cache.close()
    assert torch.equal(mixed, torch.cat(alone + after))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("read", [0, 1, 3])
def test_rows_that_nobody_reads_change_nothing(family, read):
    _, native, specs = decoders(family, 4)
    found = []
    for wanted in (None, read):
        segments = []
        for prompt, spec in zip([*PROMPTS, [7]], itertools.cycle(specs.values()), strict=False):
            cache = native.cache.open()
            assert cache.reserve(len(prompt) + 1)
            segments.append(Segment(prompt, cache, spec, wanted and min(wanted, len(prompt))))
        segments[0].outputs = None
        hidden = native.forward(segments).split([len(s.tokens) for s in segments])
        rows = [part[max(0, len(part) - read) :] for part in hidden]
        rows.append(native.forward([Segment([9], s.cache, s.variant) for s in segments]))
        found.append(torch.cat([hidden[0], *rows]))
        for segment in segments:
            segment.cache.close()
    assert torch.equal(*found)


def test_instruction_sets_agree():
    found = {}
    for isa in instruction_sets():
        _, native, specs = decoders("qwen3", 4)
        native._engine = native_library.NativeEngine(2, isa)
        found[isa] = prompts_and_a_token(native, specs)
    for isa, other in found.items():
        # Queries in bf16 round some inputs of `o` to the next step.
        assert kl(found["portable"], other) < (1e-3 if isa == "avx512bf16" else 1e-4)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(RuntimeError, match="no 'mmx'"):
        native_library.NativeEngine(1, "mmx")
