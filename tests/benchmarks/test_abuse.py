"""`benchmarks.abuse` and `benchmarks.soak` in small, on a tiny model."""

import argparse

import pytest

from benchmarks.abuse import attack
from benchmarks.soak import run


@pytest.fixture
def options():
    parser = argparse.ArgumentParser()

    def given(module, *arguments):
        module.add_options(parser)
        return parser.parse_args(arguments)

    return given


def test_abuse_harms_nobody(tiny_server, options):
    asked = options(
        attack, "--requests", "84", "--rate", "40", "--calm", "0", "--no-slow", "--clients", "2"
    )
    found = attack.attack(tiny_server, asked)
    assert found["faults"] == []
    assert len(found["kinds"]) >= 80
    assert found["good"]["answered"] > 0
    assert found["health"]["abused"]["asked"] > 0


def test_a_soak_leaves_nothing_behind(tiny_server, options):
    asked = options(run, "--requests", "60", "--at-once", "16", "--longest", "40")
    found = run.soak(tiny_server, asked)
    assert found["faults"] == []
    assert found["outcomes"]["beyond limits: 413"] == 1  # a body of 5 MB
    assert found["outcomes"]["beyond limits: 400"] == 11
    assert found["twins"] == found["equal"] == 7
