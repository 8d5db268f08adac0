"""Which file of a repository is meant. The names are those of repositories that many people use."""

import pytest

from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.quantisation import choose_gguf, gguf_models, quant_label

BARTOWSKI = [
    *(f"Llama-3.2-1B-Instruct-{q}.gguf" for q in ("IQ3_M", "IQ4_XS", "Q3_K_XL", "Q4_0_4_4")),
    *(f"Llama-3.2-1B-Instruct-{q}.gguf" for q in ("Q4_0", "Q4_K_L", "Q4_K_M", "Q8_0", "f16")),
    "Llama-3.2-1B-Instruct.imatrix",
]
QWEN = [
    "qwen2.5-7b-instruct-q4_k_m-00002-of-00002.gguf",
    "qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf",
    "qwen2.5-7b-instruct-fp16-00001-of-00004.gguf",
    "qwen2.5-7b-instruct-q2_k.gguf",
]
UNSLOTH = [
    "mmproj-BF16.gguf",
    "gemma-3-4b-it-UD-Q4_K_XL.gguf",
    "gemma-3-4b-it-Q4_K_XL.gguf",
    "BF16/gemma-3-4b-it-BF16-00001-of-00001.gguf",
]


@pytest.mark.parametrize(
    ("names", "quant", "found"),
    [
        (BARTOWSKI, None, ["Llama-3.2-1B-Instruct-Q4_K_M.gguf"]),
        (BARTOWSKI, "q8_0", ["Llama-3.2-1B-Instruct-Q8_0.gguf"]),
        (BARTOWSKI, "F16", ["Llama-3.2-1B-Instruct-f16.gguf"]),
        (BARTOWSKI, "Llama-3.2-1B-Instruct-IQ3_M.gguf", ["Llama-3.2-1B-Instruct-IQ3_M.gguf"]),
        (QWEN, None, [QWEN[1], QWEN[0]]),
        (QWEN, "Q2_K", [QWEN[3]]),
        (UNSLOTH, "UD-Q4_K_XL", [UNSLOTH[1]]),
        (UNSLOTH, "Q4_K_XL", [UNSLOTH[2]]),
        (UNSLOTH, None, [UNSLOTH[3]]),
        (["ggml-model-i2_s.gguf"], None, ["ggml-model-i2_s.gguf"]),
        (["tinyllama.Q5_K_S.gguf", "tinyllama.Q2_K.gguf"], None, ["tinyllama.Q5_K_S.gguf"]),
    ],
)
def test_a_file_is_found(names, quant, found):
    assert choose_gguf("me/it", names, quant) == found


@pytest.mark.parametrize(
    ("names", "quant", "says"),
    [
        (BARTOWSKI, "Q5_K_M", "me/it has no Q5_K_M; there are: "),
        (BARTOWSKI, "Q5_K_M", "Q4_K_M, Q8_0, F16"),
        (QWEN, "FP16", "has no FP16"),  # three of its four parts are not there
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], None, "me/it:FILE.gguf; there are: a-Q4_0.gguf, b-Q4"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0", "me/it:FILE.gguf; there are: a-Q4_0.gguf, b-Q4"),
        (["a-one.gguf", "a-two.gguf"], None, "several GGUF files; say which; there are: a-one.gg"),
        (["mmproj-F16.gguf"], "F16", "there are: none"),
    ],
)
def test_what_is_no_file_or_several_is_said(names, quant, says):
    with pytest.raises(ModelSourceError) as error:
        choose_gguf("me/it", names, quant)
    assert says in str(error.value)


def test_parts_belong_together():
    assert gguf_models(QWEN) == {
        "qwen2.5-7b-instruct-q2_k": [QWEN[3]],
        "qwen2.5-7b-instruct-q4_k_m": [QWEN[1], QWEN[0]],
    }


def test_labels():
    names = ("Phi-3-mini-4k-instruct-q4", "granite-3.1-8b.Q6_K", "x-IQ2_XXS", "gpt-oss-MXFP4_MOE")
    assert [quant_label(name) for name in names] == ["Q4", "Q6_K", "IQ2_XXS", "MXFP4_MOE"]
    assert quant_label("folder-Q4_0/llama-3.2-1b") is None
