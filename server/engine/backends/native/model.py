"""A packed base and its variants as the structures that the kernels follow."""

import ctypes
from ctypes import POINTER, c_int32, pointer

from pruners.variant import Block, Part, VariantSpec
from server.engine.backends.native import library as native
from server.engine.backends.native.head_screening import HeadScreen
from server.engine.backends.native.packed_corrections import (
    PackedCorrections,
    PackedInputCorrection,
)
from server.engine.backends.native.packed_weights import PackedLayer, PackedWeights
from server.engine.backends.native.packing import PackedMatrix


class NativeModel:
    """The structures that the kernels follow. Holds what they point at."""

    def __init__(self, weights: PackedWeights, own: PackedCorrections) -> None:
        self.weights = weights
        self._own = own
        self._kept: list[object] = []
        self._variants: dict[VariantSpec, int] = {}
        shape = weights.shape
        layers = (native.Layer * shape.layers)(*(self._layer(layer) for layer in weights.layers))
        self._kept.append(layers)
        self.head = matrix_of(weights.head)
        screen = weights.head_screen
        self.head_screen = None if screen is None else head_screen_of(screen)
        self.model = native.Model(
            ctypes.cast(layers, POINTER(native.Layer)),
            matrix_of(weights.embed),
            weights.final_norm.data_ptr(),
            shape.layers,
            shape.hidden,
            shape.kv_groups,
            shape.queries_per_group,
            shape.head_dim,
            shape.ffn,
            native.ACTIVATIONS[weights.activation],
            weights.eps,
            weights.embed_scale,
            weights.softmax_scale,
        )

    def _layer(self, layer: PackedLayer) -> native.Layer:
        cos, sin = self.weights.rope[layer.rope]
        return native.Layer(
            qkv=matrix_of(layer.qkv),
            o=matrix_of(layer.o),
            gate_up=matrix_of(layer.gate_up),
            down=matrix_of(layer.down),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            window=layer.window or 0,
            **{name: norm.data_ptr() for name, norm in layer.norms.items()},
        )

    def variant(self, spec: VariantSpec) -> int:
        """The address of a variant's widths and own parts, which are made once.

        Raises `ValueError` if it is wider than the base: the kernels would read what is not there.
        """
        if spec not in self._variants:
            self._check(spec)
            groups, ffn = native.int32s(spec.kv_groups), native.int32s(spec.ffn)
            attention, mlp = self._owns(spec, "attention"), self._owns(spec, "mlp")
            found = native.Variant(
                ctypes.cast(groups, POINTER(c_int32)),
                ctypes.cast(ffn, POINTER(c_int32)),
                attention,
                mlp,
            )
            self._kept += [groups, ffn, attention, mlp, found]
            self._variants[spec] = ctypes.addressof(found)
        return self._variants[spec]

    def _check(self, spec: VariantSpec) -> None:
        shape = self.weights.shape
        for widths, most in ((spec.kv_groups, shape.kv_groups), (spec.ffn, shape.ffn)):
            if len(widths) != shape.layers or not all(0 <= width <= most for width in widths):
                raise ValueError(f"variant '{spec.name}' is no part of this model")

    def _owns(self, spec: VariantSpec, part: Part) -> "ctypes.Array[ctypes._Pointer[native.Own]]":
        owns = (POINTER(native.Own) * len(spec.ffn))()
        for index in range(len(spec.ffn)):
            own = self._own.get(Block(index, part), {}).get(spec.name)
            if own is None:
                continue
            entry = None if own.entry is None else pointer(self._entry(own.entry))
            found = native.Own(
                self._matrix(own.inner),
                self._matrix(own.outer),
                own.bias.data_ptr(),
                int(own.replaces),
                entry,
            )
            owns[index] = pointer(found)
            self._kept += [entry, found]
        return owns

    def _entry(self, entry: PackedInputCorrection) -> native.Entry:
        return native.Entry(
            entry.norm.data_ptr(), self._matrix(entry.inner), self._matrix(entry.outer)
        )

    def _matrix(self, packed: PackedMatrix | None) -> "ctypes._Pointer[native.Matrix] | None":
        if packed is None:
            return None
        found = pointer(matrix_of(packed))
        self._kept.append(found)
        return found


def head_screen_of(screen: HeadScreen) -> native.Preview:
    """The structure of a head screen, which must outlive it."""
    return native.Preview(*(tensor.data_ptr() for tensor in screen.tensors()))


def matrix_of(packed: PackedMatrix) -> native.Matrix:
    """The structure of a packed matrix, which must outlive it."""
    return native.Matrix(
        packed.data.data_ptr(),
        native.pointer(packed.bias),
        packed.outputs,
        packed.inputs,
        packed.bits,
        int(packed.input_major),
    )
