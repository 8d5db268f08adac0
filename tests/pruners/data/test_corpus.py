import sys
from types import SimpleNamespace

import pytest

from pruners.data.corpus import SourceError, read_corpus
from pruners.data.readers import ReadError
from pruners.support.errors import UserError
from tests.support.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_text_is_one_document_and_splits_in_its_middle(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("the quick brown fox " * 40)
    corpus = read_corpus(str(path))
    assert corpus.name == "book.txt"
    first, second = corpus.split(0.75)
    assert first.documents[0] + second.documents[0] == path.read_text()
    assert len(first.documents[0]) == 600
    rows = first.rows(TOKENIZER, window=32, limit=100)
    assert sum(map(len, rows)) == 100
    assert max(map(len, rows)) == 32


def test_json_lines_of_every_form(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        '{"text": "a fox"}\n\n'
        '{"messages": [{"role": "user", "content": "jump"}]}\n'
        '{"instruction": "jump", "context": "over the dog", "response": "done"}\n'
        '{"id": 3, "prompt": "lazy"}\n'
    )
    corpus = read_corpus(str(path))
    assert len(corpus.documents) == 4
    texts = [TOKENIZER.decode(row) for row in corpus.rows(TOKENIZER, window=64)]
    assert texts[0] == "a fox"
    assert texts[1] == "<|user|>jump<|end|>"
    assert texts[2] == "<|user|>jump\n\nover the dog<|end|><|assistant|>done<|end|>"
    first, second = corpus.split(0.5)
    assert (*first.documents, *second.documents) == corpus.documents


def test_csv_takes_its_text_column_or_the_first(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('id,prompt\n1,"a fox, quick"\n2,lazy\n')
    assert read_corpus(str(path)).documents == ("a fox, quick", "lazy")
    path.write_text("words,other\nfox,1\n")
    assert read_corpus(str(path)).documents == ("fox",)


def test_wikitext_is_read_by_its_protocol_and_a_part_is_spread_evenly(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(" = Title = \n \n the quick brown fox \n" * 60)
    corpus = read_corpus(str(path))
    assert corpus.wikitext
    rows = corpus.rows(TOKENIZER, window=16)
    assert all(len(row) == 16 for row in rows)
    part = corpus.rows(TOKENIZER, window=16, limit=16 * 5)
    assert [row.tolist() for row in part] == [rows[i * len(rows) // 5].tolist() for i in range(5)]


def test_a_dataset_is_streamed(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        return iter([{"body": "a fox"}, {"body": "a dog"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_corpus("hf:some/thing:validation:body").documents == ("a fox", "a dog")
    assert asked == [("some/thing", "validation", True)]
    with pytest.raises(SourceError, match="no text among body; name the column"):
        read_corpus("hf:some/thing")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"\xff\xfe\xff", "is not UTF-8 text"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.jsonl", b'{"id": 1}', "line 1 has none of the fields text"),
        ("a.jsonl", b"[1]", "line 1 has none"),
        ("a.csv", b"text\n", "holds no text"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_corpus(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_missing_files_and_data_sets_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ReadError, match="cannot read"):
        read_corpus(str(tmp_path / "nothing.txt"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match="pip install"):
        read_corpus("hf:some/thing")


def test_a_conversation_needs_a_template(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "jump"}]}\n')
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(SourceError, match="no chat template"):
        read_corpus(str(path)).rows(bare, window=16)
