"""Fill in the structures of the kernels for a packed base and its variants."""

import ctypes
from collections.abc import Collection
from ctypes import POINTER, c_int32, pointer

from pruners.variant import Block, Part, VariantSpec
from server.engine.backends.native.head_screening import HeadScreen
from server.engine.backends.native.packed_corrections import (
    PackedCorrections,
    PackedInputCorrection,
)
from server.engine.backends.native.packed_maps import PackedMapsByDepth
from server.engine.backends.native.packed_weights import PackedLayer, PackedWeights
from server.engine.backends.native.packing import PackedMatrix
from server.engine.backends.native.structures import (
    ACTIVATIONS,
    CorrectionStruct,
    HeadScreenStruct,
    InputCorrectionStruct,
    KVMapsStruct,
    LayerStruct,
    MatrixStruct,
    ModelStruct,
    VariantStruct,
    address_of,
    int32_array,
)

CorrectionPointers = ctypes.Array["ctypes._Pointer[CorrectionStruct]"]


class NativeModel:
    """The structures of a base, its variants and its maps. It keeps alive what they point at.

    `model` has all layers, `head` the output head, and `head_screen` its coarse copy, if any. What
    is added to the corrections and the maps later counts.
    """

    def __init__(
        self, weights: PackedWeights, corrections: PackedCorrections, maps: PackedMapsByDepth
    ) -> None:
        self.weights = weights
        self._corrections = corrections
        self._packed_maps = maps
        self._maps: dict[int, KVMapsStruct] = {}
        self._alive: list[object] = []
        self._variants: dict[VariantSpec, int] = {}
        shape = weights.shape
        layers = (LayerStruct * shape.layers)(*(self._layer(layer) for layer in weights.layers))
        self._alive.append(layers)
        self.head = matrix_struct(weights.head)
        screen = weights.head_screen
        self.head_screen = None if screen is None else head_screen_struct(screen)
        self.model = ModelStruct(
            layer=ctypes.cast(layers, POINTER(LayerStruct)),
            embed=matrix_struct(weights.embed),
            final_norm=weights.final_norm.data_ptr(),
            layers=shape.layers,
            hidden=shape.hidden,
            groups=shape.kv_groups,
            queries=shape.queries_per_group,
            head_dim=shape.head_dim,
            rotated=weights.rotated,
            ffn=shape.ffn,
            activation=ACTIVATIONS[weights.activation],
            eps=weights.eps,
            embed_scale=weights.embed_scale,
            softmax_scale=weights.softmax_scale,
            residual_scale=weights.residual_scale,
        )

    def _layer(self, layer: PackedLayer) -> LayerStruct:
        cos, sin = self.weights.rope[layer.rope]
        qk_norm = layer.norms.get("qk_norm")
        return LayerStruct(
            qkv=matrix_struct(layer.qkv),
            o=matrix_struct(layer.o),
            gate_up=matrix_struct(layer.gate_up),
            down=matrix_struct(layer.down),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            window=layer.window or 0,
            wide_qk_norm=int(qk_norm is not None and qk_norm.dim() == 3),
            **{name: norm.data_ptr() for name, norm in layer.norms.items()},
        )

    def variant(self, spec: VariantSpec) -> int:
        """Return the address of a variant's structure, which is made at the first call.

        Raises `ValueError` if the variant does not fit the base: the kernels would read beyond the
        weights.
        """
        if spec not in self._variants:
            spec.check(self.weights.shape)
            groups, ffn = int32_array(spec.kv_groups), int32_array(spec.ffn)
            attention = self._correction_pointers(spec, "attention")
            mlp = self._correction_pointers(spec, "mlp")
            variant = VariantStruct(
                groups=ctypes.cast(groups, POINTER(c_int32)),
                ffn=ctypes.cast(ffn, POINTER(c_int32)),
                attention=attention,
                mlp=mlp,
            )
            self._alive += [groups, ffn, attention, mlp, variant]
            self._variants[spec] = ctypes.addressof(variant)
        return self._variants[spec]

    @property
    def depths(self) -> Collection[int]:
        """The depths of which there are maps."""
        return self._packed_maps.keys()

    def maps(self, depth: int) -> int:
        """Return the address of the structure of one depth's maps, made at the first call."""
        if depth not in self._maps:
            self._maps[depth] = KVMapsStruct(matrix_struct(self._packed_maps[depth].matrix), depth)
        return ctypes.addressof(self._maps[depth])

    def _correction_pointers(self, spec: VariantSpec, part: Part) -> CorrectionPointers:
        """Return a pointer for each layer, null where the variant has no correction."""
        pointers = (POINTER(CorrectionStruct) * len(spec.ffn))()
        for index in range(len(spec.ffn)):
            packed = self._corrections.get(Block(index, part), {}).get(spec.name)
            if packed is None:
                continue
            correction = CorrectionStruct(
                inner=self._matrix_pointer(packed.inner),
                outer=self._matrix_pointer(packed.outer),
                bias=packed.bias.data_ptr(),
                replaces=int(packed.replaces),
                input=self._input_pointer(packed.entry),
            )
            pointers[index] = pointer(correction)
            self._alive.append(correction)
        return pointers

    def _input_pointer(
        self, packed: PackedInputCorrection | None
    ) -> "ctypes._Pointer[InputCorrectionStruct] | None":
        if packed is None:
            return None
        inner, outer = self._matrix_pointer(packed.inner), self._matrix_pointer(packed.outer)
        made = pointer(InputCorrectionStruct(packed.norm.data_ptr(), inner, outer))
        self._alive.append(made)
        return made

    def _matrix_pointer(
        self, packed: PackedMatrix | None
    ) -> "ctypes._Pointer[MatrixStruct] | None":
        if packed is None:
            return None
        made = pointer(matrix_struct(packed))
        self._alive.append(made)
        return made


def head_screen_struct(screen: HeadScreen) -> HeadScreenStruct:
    """Return the structure of a head screen. The screen must outlive it."""
    return HeadScreenStruct(*(tensor.data_ptr() for tensor in screen.tensors()))


def matrix_struct(packed: PackedMatrix) -> MatrixStruct:
    """Return the structure of a packed matrix. The matrix must outlive it."""
    return MatrixStruct(
        data=packed.data.data_ptr(),
        bias=address_of(packed.bias),
        outputs=packed.outputs,
        inputs=packed.inputs,
        bits=packed.bits,
        input_major=int(packed.input_major),
    )
