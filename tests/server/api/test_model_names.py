"""Names by which a model may be asked for."""

import pytest

from server.api.errors import ApiError
from server.api.model_names import ModelNames

VARIANTS = ("base", "mix-80")


@pytest.mark.parametrize(
    ("given", "source", "name", "accepted"),
    [
        ((), "/models/mine", "mine", ["mine"]),
        ((), "hf:Org/Tiny-GGUF:Q4_0", "Org/Tiny-GGUF:Q4_0",
         ["Org/Tiny-GGUF:Q4_0", "Org/Tiny-GGUF", "Tiny-GGUF"]),
        ((), "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct",
         ["SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"]),
        ((), "/hub/models--Org--Tiny/snapshots/0a1b2c", "0a1b2c",
         ["0a1b2c", "Org/Tiny", "Tiny"]),
        (("gpt-4o", "small"), "Org/Tiny", "Org/Tiny", ["gpt-4o", "small", "Org/Tiny", "Tiny"]),
    ],
)  # fmt: skip
def test_a_model_has_its_own_name_that_of_the_hub_and_aliases(given, source, name, accepted):
    names = ModelNames.of(given, source, name)
    assert names.served == accepted[0]
    for one in (*accepted, "base", None):
        assert names.variant_of(one, VARIANTS) is None
    for one in accepted:
        assert names.variant_of(f"{one}@mix-80", VARIANTS) == "mix-80"


@pytest.mark.parametrize(
    "name", ["", "other", "mine@", "mine@nope", "base@mix-80", "Mine", "@base"]
)
def test_other_names_are_not_found(name):
    with pytest.raises(ApiError, match="no model") as raised:
        ModelNames.of((), "/models/mine", "mine").variant_of(name, VARIANTS)
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")
