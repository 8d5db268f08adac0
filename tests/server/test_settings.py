"""Check that settings are described, and that the page and the command show all of them."""

from pathlib import Path
from typing import get_args

import pytest

from server.api.tools.tool_form import TOOL_FORMS
from server.engine.config import EngineConfig, ModelConfig
from server.settings import (
    Settings,
    default_text,
    option_name,
    setting_description,
    setting_groups,
    variable_name,
)
from server.settings_page import settings_page
from tests.support.commands import trimtab

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_defaults_of_the_configurations_are_those_of_the_settings():
    assert Settings().to_model_config() == ModelConfig()
    assert Settings().to_engine_config() == EngineConfig()


def test_every_setting_is_described_in_a_group():
    grouped = [name for names in setting_groups().values() for name in names]
    assert grouped == list(Settings.model_fields)
    for name in Settings.model_fields:
        assert setting_description(name).endswith("."), name


def test_the_page_in_the_documentation_is_the_generated_one():
    assert PAGE.read_text() == settings_page()


def test_the_help_of_serve_shows_every_setting_in_its_group(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    done = trimtab("serve", "--help")
    assert done.returncode == 0
    page = settings_page()
    for title, names in setting_groups().items():
        assert f"─ {title} ─" in done.stdout
        assert f"\n## {title}\n" in page
        for name in names:
            assert f"{option_name(name)} " in done.stdout
            assert setting_description(name) in done.stdout
            assert f"| `{option_name(name)}` | `{variable_name(name)}` |" in page


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_running", "16"),
        ("ttft_ms", "2000"),
        ("speculate", "on"),
        ("force", "off"),
        ("kv_budgets", "[1024, 512, 256]"),
        ("threads", ""),
        ("allowed_hosts", ""),
    ],
)
def test_a_default_is_shown_as_an_option_would_give_it(name: str, text: str):
    assert default_text(name) == text


def test_every_parser_of_tool_calls_can_be_set():
    names = get_args(Settings.model_fields["tool_parser"].annotation)
    assert names == ("auto", *TOOL_FORMS)
