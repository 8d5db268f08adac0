import pytest
import torch

from pruners.architecture import locate
from pruners.depth import greedy_layers
from tests.pruners.models import logits, random_rows, tiny_model


def silence(decoder, index: int) -> None:
    with torch.no_grad():
        decoder.layers[index].attention.o.weight.zero_()
        decoder.layers[index].mlp.down.weight.zero_()


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3"])
@pytest.mark.parametrize("useless", [0, 1, 2])
def test_a_useless_layer_goes_first(family: str, useless: int):
    decoder = locate(tiny_model(family))
    silence(decoder, useless)
    found = greedy_layers(decoder, random_rows(3, (16, 9)), 1)
    assert found.layers == (useless,)
    assert found.kl[0] == pytest.approx(0, abs=1e-6)


def test_the_best_candidates_survive_all_batches():
    decoder = locate(tiny_model(num_hidden_layers=9))
    silence(decoder, 2)
    silence(decoder, 7)
    found = greedy_layers(decoder, random_rows(20, (60,)), 2)  # three batches
    assert set(found.layers) == {2, 7}
    assert found.kl == pytest.approx((0, 0), abs=1e-6)


def brute_force_kl(model, rows, without: set[int]) -> float:
    def skipped(hidden: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden

    base = [logits(model, [row])[0, :-1].log_softmax(-1) for row in rows]
    for index in without:
        model.model.layers[index].forward = skipped
    pruned = [logits(model, [row])[0, :-1].log_softmax(-1) for row in rows]
    for index in without:
        del model.model.layers[index].forward
    return torch.nn.functional.kl_div(
        torch.cat(pruned), torch.cat(base), log_target=True, reduction="batchmean"
    ).item()


def test_greedy_choice_equals_brute_force():
    model = tiny_model(num_hidden_layers=5)
    rows = random_rows(4, (16, 9))
    found = greedy_layers(locate(model), rows, 3)
    gone: list[int] = []
    for chosen, kl in zip(found.layers, found.kl, strict=True):
        scores = {
            layer: brute_force_kl(model, rows, {*gone, layer})
            for layer in range(5)
            if layer not in gone
        }
        assert chosen == min(scores, key=scores.__getitem__)
        assert kl == pytest.approx(scores[chosen], rel=1e-3)
        gone.append(chosen)


@pytest.mark.parametrize("count", [0, 3])
def test_refuses_to_skip_none_or_all(count: int):
    with pytest.raises(ValueError, match="of 3 layers"):
        greedy_layers(locate(tiny_model()), random_rows(1, (8,)), count)
