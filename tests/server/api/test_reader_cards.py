"""What `/v1/models` tells of readers: what the artefact's table holds, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import httpx
from fastapi import FastAPI
from starlette.testclient import TestClient

from pruners.artefact.table import Accuracy, Table
from pruners.variant import base_spec
from server.api.model_names import ModelNames
from server.api.openai import models
from server.api.reader_cards import reader_cards
from tests.support.artefacts import artefact_with_readers


def _model(table=None):
    artefact = artefact_with_readers()
    specs = [base_spec(artefact.shape), *artefact.variants]
    return SimpleNamespace(
        name="tiny",
        artefact=replace(artefact, table=table or artefact.table),
        readers=artefact.readers,
        variants={spec.name: spec for spec in specs},
        weights=SimpleNamespace(shape=artefact.shape),
    )


def test_a_reader_has_what_was_measured():
    model = _model()
    tasks = model.artefact.table.reading_tasks
    tasks["passkey-200"]["base"] = Accuracy(10, 1.0, None, 0.05, 1.0)
    tasks["lambada"] = {"base": Accuracy(10, 0.3, None, 0.05, 1.0)}
    measured, *others = reader_cards(model)
    assert measured == {
        "name": "read-80",
        "depth": 2,
        "compute": 0.8,
        "map_bytes": 4416,
        "kl": 0.05,
        "kl_half_width": 0,
        "agreement": 1,
        "kl_by_length": {"256-1024": 0.04},
        "tasks": {"passkey-200": {"accuracy": 0.9, "half_width": 0.1, "base": 1.0}},
    }
    assert others == [{"name": "read-60", "depth": 1}, {"name": "read-50", "depth": 1}]


def test_what_was_not_measured_is_absent():
    names = {"read-80": 2, "read-60": 1, "read-50": 1}
    expected = [{"name": name, "depth": depth} for name, depth in names.items()]
    assert reader_cards(_model(Table())) == expected
    assert reader_cards(SimpleNamespace(artefact=None, readers={})) == []


def test_every_model_of_the_list_has_the_readers():
    model, app = _model(), FastAPI()
    builder = SimpleNamespace(context_tokens=128, names=ModelNames("tiny"))
    app.include_router(models.router(SimpleNamespace(model=model, builder=builder)))
    with TestClient(app) as client:
        listed: httpx.Response = client.get("/v1/models")
        for card in listed.json()["data"]:
            assert card["trimtab"]["readers"] == reader_cards(model)
            assert client.get(f"/v1/models/{card['id']}").json() == card
