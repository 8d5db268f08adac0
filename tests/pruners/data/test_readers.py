"""Test strict reading of files: no text is lost, and errors name the file and the line."""

import json

import pytest

from pruners.data.corpus import read_corpus
from pruners.data.readers import read_csv, read_json, read_json_lines
from pruners.evaluation.tasks import read_task
from pruners.support.errors import UserError

ODD = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
"""Characters at which `str.splitlines` ends a line, though a file's line does not end there."""


def test_only_a_newline_ends_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": ODD}, {"text": "second"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("\r\n".join(lines).encode())
    assert read_corpus(str(path)).documents == (ODD, "second")
    assert [number for number, _ in read_json_lines(path)] == [1, 2]
    task = {"context": ODD, "continuation": "x"}
    path.write_text(json.dumps(task, ensure_ascii=False), encoding="utf-8")
    assert read_task(path).questions[0].choices[0].context == ODD


def test_a_csv_field_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    quoted = 'first\nsecond, "third"\r\n' + ODD
    long = "x" * 200_000
    cell = '"' + quoted.replace('"', '""') + '"'
    path.write_bytes(f"id,text\r\n1,{cell}\r\n2,{long}\r\n".encode())
    assert read_corpus(str(path)).documents == (quoted, long)
    path.write_bytes(f"id\rtext\r{long}\r".encode().replace(b"id\rtext", b"text"))
    assert read_corpus(str(path)).documents == (long,)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_removed(tmp_path, name):
    body = {"a.txt": "fox", "a.jsonl": '{"text": "fox"}', "a.csv": "text\nfox\n"}[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + body.encode())
    assert read_corpus(str(tmp_path / name)).documents == ("fox",)


def test_content_parts_are_joined_as_in_the_http_api(tmp_path):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "fox"}]
    row = {"messages": [{"role": "user", "content": parts}]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    assert read_corpus(str(path)).documents == ([{"role": "user", "content": "a fox"}],)


GOOD = '{"text": "fox"}\n'
REFUSED = {
    "null": ("a.jsonl", GOOD + "null", "line 2 has none of the fields"),
    "null text": ("a.jsonl", GOOD + '{"text": null}', "line 2 has none of the fields"),
    "text for a message": ("a.jsonl", '{"messages": ["x"]}', "line 1: message 1 has no role"),
    "messages no list": ("a.jsonl", '{"messages": "x"}', "line 1: messages is no list"),
    "null content": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": null}]}',
        "line 1: message 1 has content that is no text",
    ),
    "an image": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        "line 1: message 1 has content that is no text",
    ),
    "instruction no text": ("a.jsonl", '{"instruction": ["x"]}', "line 1: instruction is no text"),
    "answer no text": ("a.jsonl", '{"instruction": "x", "output": 3}', "line 1: output is no text"),
    "cut": ("a.jsonl", GOOD + '{"text": "fo', "line 2: not JSON"),
    "twice a key": ("a.jsonl", '{"text": "a", "text": "b"}', "line 1: the key 'text' is there twi"),
    "NaN": ("a.jsonl", '{"text": "a", "n": NaN}', "line 1: NaN is no number"),
    "beyond a float": ("a.jsonl", '{"text": "a", "n": 1e400}', "line 1: 1e400 is too large"),
    "half a pair": ("a.jsonl", GOOD + '{"text": "\\ud83d"}', "line 2: half of a surrogate pair"),
    "deep": ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1: nested too deeply"),
    "latin-1": ("a.jsonl", GOOD.encode() + b'{"text": "\xe9"}', "line 2 is not UTF-8"),
    "latin-1 csv": ("a.csv", b"text\nfox\n\xe9\n", "line 3 is not UTF-8"),
    "latin-1 text": ("a.txt", b"caf\xe9", "byte 3 is not UTF-8"),
    "utf-16": ("a.jsonl", GOOD.encode("utf-16"), "is not UTF-8 text"),
    "utf-16 csv": ("a.csv", "text\nfox\n".encode("utf-16-le"), "is not UTF-8 text"),
    "utf-16 text": ("a.txt", "fox".encode("utf-16-be"), "is not UTF-8 text"),
    "binary": ("a.txt", b"GGUF\x03\0\0\0", "is not UTF-8 text"),
    "empty csv": ("a.csv", "", "is empty"),
    "header alone": ("a.csv", "text\n", "holds no text"),
    "more fields": ("a.csv", "id,text\n1,a, b\n", "line 2: 3 fields under a header of 2"),
    "fewer fields": ("a.csv", 'id,text\n1,"a\nb"\n2\n', "line 4: 1 fields under a header of 2"),
    "a column twice": ("a.csv", "text,text\na,b\n", "names a column twice"),
    "an open quote": ("a.csv", 'text\n"a\nb\n', "line 3: unexpected end of data"),
    "a field too long": ("a.csv", "text\n" + "x" * (2**24 + 1), "line 2: field larger than"),
}


@pytest.mark.parametrize(("name", "body", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_unreadable_file_is_refused_in_one_line_with_the_place(tmp_path, name, body, message):
    path = tmp_path / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    with pytest.raises(UserError, match=message) as refused:
        read_corpus(str(path))
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "no object"),
        ({"query": "q", "choices": "ab", "gold": 0}, "choices is no list of texts"),
        ({"query": "q", "choices": ["a", None], "gold": 0}, "choices is no list of texts"),
        ({"query": "q", "choices": ["a", "b"], "gold": "1"}, "gold '1' is no whole number"),
        ({"query": "q", "choices": ["a", "b"], "gold": True}, "gold True is no whole number"),
        ({"query": None, "choices": ["a", "b"], "gold": 1}, "query is no text"),
        ({"query": "q", "choices": ["a", "b"]}, "no field 'gold'"),
        ({"context": "c", "continuation": None}, "continuation is no text"),
    ],
)
def test_an_invalid_question_is_refused_with_its_line(tmp_path, row, message):
    good = {"context": "c", "continuation": "d"}
    path = tmp_path / "task.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=f"task.jsonl line 2 is no task: {message}"):
        read_task(path)


def test_files_that_cannot_be_opened_are_refused(tmp_path):
    for read in (read_json, lambda p: list(read_json_lines(p)), lambda p: list(read_csv(p))):
        with pytest.raises(UserError, match="Is a directory"):
            read(tmp_path)
        with pytest.raises(UserError, match="No such file"):
            read(tmp_path / "none")
