"""What a call hands on to the controller and to the engine, both stand-ins here."""

from types import SimpleNamespace

from policies import Action, Reason
from server.api.prompts import Prompt
from server.api.protocol import CompletionBody
from server.api.service import Ask, Service

_CACHED = {2: {"base": 1, "small": 2}, 3: {"small": 3}, 1: {}}  # by the length of the prompt


class _Engine:
    def __init__(self):
        self.requests = []

    def reusable(self, tokens):
        return _CACHED[len(tokens)]

    def submit(self, request, inbox):
        self.requests.append(request)
        return SimpleNamespace(cancel=lambda: None)


class _Controller:
    def decide(self, newcomer):
        self.newcomer = newcomer
        return SimpleNamespace(action=Action("small"), reason=Reason.TTFT, refused=False)


def test_each_prompt_brings_what_is_cached_of_it_for_the_chosen_variant():
    model = SimpleNamespace(
        variants={"base": "the base", "small": "the small one"},
        sampling_defaults={},
        eos_token_ids=frozenset(),
        weights=SimpleNamespace(shape=SimpleNamespace(vocab=100)),
    )
    nothing = SimpleNamespace(
        decided=lambda _: None, follow=lambda _: None, add=lambda *_: None, refused=lambda _: None
    )
    engine, controller = _Engine(), _Controller()
    service = Service(
        model, engine, controller, lambda text: text, nothing, nothing, 64, 8, "scorer", None
    )
    prompts = [Prompt(list(range(length)), "x" * length) for length in (2, 3, 1)]
    service.start(Ask(prompts, CompletionBody(prompt="", n=2), 4), "call")
    assert [request.reusable for request in engine.requests] == [2, 2, 3, 3, 0, 0]
    assert controller.newcomer.reusable == _CACHED[3], "of the longest prompt"
    assert controller.newcomer.prompt_tokens == 3
