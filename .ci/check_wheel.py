"""Check the kernels of an installed wheel: they are there, the processor's own, and right."""

import platform

import torch

from server.engine.backends.native import library
from server.engine.backends.native.library import NativeEngine
from server.engine.backends.native.model import matrix_struct
from server.engine.backends.native.packing import pack, quantise

OWN = {
    **dict.fromkeys(("x86_64", "AMD64"), ("avx512bf16", "avx512", "avxvnni", "avx2")),
    **dict.fromkeys(("arm64", "aarch64", "ARM64"), ("neoni8mm", "neondot", "neon")),
}

engine = NativeEngine(2)
assert engine.isa in OWN[platform.machine()], engine.isa
torch.manual_seed(0)
for bits in (4, 8):
    codes = quantise(torch.randn(80, 96), bits)
    x, y = torch.randn(5, 96), torch.empty(5, 80)
    packed = pack(codes)
    engine.project(matrix_struct(packed), x, y)
    expected = x @ codes.values().T
    assert (y - expected).norm() < 0.01 * expected.norm()
print(f"{library.load_library()._name}: {engine.isa}")
