"""Streams and whole responses, read by the OpenAI client's own parser."""

import json

import httpx
import openai
import pytest

from server.api.chat.events import AnswerEnded, AnswerFailed, TextDelta
from server.api.openai_responses.body import ResponseBody
from server.api.openai_responses.document import ResponseDocument, output_of
from server.api.openai_responses.event_writer import ResponseEvents
from tests.support.scripted_run import TOOL_ANSWER, ScriptedRun, collected

BODY = {"model": "m", "input": "hi"}


def streamed(events) -> list[str]:
    run = ScriptedRun(events)
    document = ResponseDocument(run, ResponseBody.model_validate(BODY))
    return collected(ResponseEvents(run, document, None).texts())


def read(events) -> tuple[list, object]:
    """What the client makes of a stream: its events, and the response at its end."""
    content = "".join(streamed(events))
    headers = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=content, headers=headers))
    client = openai.OpenAI(api_key="x", http_client=httpx.Client(transport=transport))
    with client.responses.stream(**BODY) as stream:
        found = list(stream)
        return found, stream.get_final_response()


def whole(events) -> dict:
    run = ScriptedRun(events)
    answer = run.finish()
    document = ResponseDocument(run, ResponseBody.model_validate(BODY))
    return document.ended(output_of(answer, []), answer.finish_reason)


def shapes(output) -> list[tuple]:
    """The output without ids, which differ each time."""
    return [
        tuple(sorted((k, json.dumps(v)) for k, v in item.items() if k != "id")) for item in output
    ]


def test_the_client_reads_thoughts_text_and_calls():
    events, response = read(TOOL_ANSWER)
    assert response.status == "completed"
    kinds = [item.type for item in response.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert response.output[0].content[0].text == "They ask for weather."
    assert response.output_text == "I look it up."
    assert response.output[2].arguments == '{"city": "Paris"}'
    assert (response.output[3].name, response.output[3].call_id) == ("clock", "call_b")
    assert response.usage.input_tokens == 7
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.usage.output_tokens == 11
    assert response.usage.trimtab_loss == 0.25
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert texts == ["I look ", "it up."]


def test_events_are_numbered_and_every_item_that_begins_ends():
    lines = [line for text in streamed(TOOL_ANSWER) for line in text.splitlines()]
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    names = [line[7:] for line in lines if line.startswith("event: ")]
    assert names == [one["type"] for one in data]
    assert [one["sequence_number"] for one in data] == list(range(len(data)))
    for begin, end in (("output_item.added", "output_item.done"), ("part.added", "part.done")):
        assert sum(n.endswith(begin) for n in names) == sum(n.endswith(end) for n in names) > 0
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == "response.completed"


@pytest.mark.parametrize(
    "events",
    [
        TOOL_ANSWER,
        (TextDelta(0, "a"), AnswerEnded(0, "length")),
        (AnswerEnded(0, "stop"),),
        (*TOOL_ANSWER[:2], TextDelta(0, "a"), AnswerEnded(0, "stop", "x")),
    ],
)
def test_a_whole_response_is_what_a_stream_ends_with(events):
    last = json.loads(streamed(events)[-1].split("data: ")[1])["response"]
    response = whole(events)
    assert shapes(last.pop("output")) == shapes(response.pop("output"))
    assert last == response


def test_an_answer_that_was_cut_is_incomplete():
    content = streamed((TextDelta(0, "a"), AnswerEnded(0, "length")))
    assert content[-1].startswith("event: response.incomplete\n")
    response = whole((TextDelta(0, "a"), AnswerEnded(0, "length")))
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


def test_a_failure_ends_the_stream():
    content = streamed((TextDelta(0, "a"), AnswerFailed(0, 500, "it broke")))
    assert content[-1].startswith("event: response.failed\n")
    response = json.loads(content[-1].split("data: ")[1])["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "it broke"}
