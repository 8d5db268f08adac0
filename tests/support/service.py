"""A service whose engine, controller and log are stand-ins."""

from types import SimpleNamespace

from policies import Action, Reason
from server.api.model_names import ModelNames
from server.api.prompt.processor import TokenizedPrompt
from server.api.request_builder import ParsedRequest, RequestBuilder
from server.api.schemas import CompletionBody
from server.api.service import Service
from server.engine.admission import InvalidRequestError

CACHED = {  # by the length of the prompt
    2: {("base", None): 1, ("base", "read-70"): 2, ("small", None): 2},
    3: {("small", None): 3},
    1: {},
}


class StandInGeneration:
    def __init__(self):
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class StandInEngine:
    def __init__(self, error=None):
        self.requests, self.generations, self.error = [], [], error
        self.decides = []

    def reusable(self, tokens):
        return CACHED[len(tokens)]

    def check_fits(self, answers, tokens):
        if answers > 6:
            raise InvalidRequestError("never")

    def keep_place(self, place):
        if self.error is not None:
            raise self.error
        self.place = place

    def submit_all(self, requests, inbox, decide=None):
        if self.error is not None:
            raise self.error
        self.requests += requests
        self.decides.append(decide)
        self.generations += [StandInGeneration() for _ in requests]
        return self.generations


class StandInController:
    def __init__(self, reason=Reason.TTFT, action=Action("small")):  # noqa: B008
        self.decisions, self.reason, self.action = 0, reason, action
        self.catalogue = SimpleNamespace(full_from=lambda tokens: {"read-70": len(tokens)})

    def decide(self, arrival):
        self.arrival = arrival
        self.decisions += 1
        observation = SimpleNamespace(wait=7.0)
        refused = self.reason in (Reason.LATE, Reason.FLOOR)
        return SimpleNamespace(
            action=self.action,
            reason=self.reason,
            refused=refused,
            only_choice=self.reason is Reason.PINNED,
            observation=observation,
            work=3.0,
        )

    def predict_wait(self):
        return 9.5


class StandInRequestLog:
    def __init__(self):
        self.decisions, self.ends = 0, []

    def log_decision(self, active):
        self.decisions += not active.counted
        active.counted = True

    def log_refusal(self, active):
        self.ends.append("refused")

    def log_answer(self, active, generation, reason):
        self.ends.append(reason.value)


def service_of(engine, controller):
    model = SimpleNamespace(
        variants={"base": "the base", "small": "the small one"},
        readers={"read-70": "a reader"},
        sampling_defaults={},
        eos_token_ids=frozenset(),
        weights=SimpleNamespace(shape=SimpleNamespace(vocab=100)),
    )
    narrowing = SimpleNamespace(apply=lambda *_: None, register=lambda *_: None)
    builder = RequestBuilder(
        model, ModelNames("tiny"), context_tokens=64, max_answers=8, kv_scorer="quest"
    )
    return Service(engine, controller, lambda text: text, builder, StandInRequestLog(), narrowing)


def parsed_request(tokens=2, max_tokens=4, default=None, **body):
    prompt = TokenizedPrompt(list(range(tokens)), "x")
    return ParsedRequest([prompt], CompletionBody(prompt="", **body), max_tokens, default)
