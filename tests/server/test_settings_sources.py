"""Check where settings come from: options before variables before a configuration file."""

import ast
from pathlib import Path

import pytest

import server
from server.settings import Settings, SettingsError
from server.settings_sources import read_settings, unknown_variables
from tests.support.commands import one_line, trimtab


@pytest.fixture
def config(tmp_path):
    """Return a function that writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "trimtab.toml"
        path.write_text(text)
        return path

    return write


def refused(says: str, *arguments) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(*arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "environ", "says"),
    [
        ({"port": 70000}, {}, "--port: input should be less than or equal to 65535"),
        ({"port": "x"}, {}, "--port: input should be a valid integer"),
        ({}, {"TRIMTAB_PORT": "abc"}, "TRIMTAB_PORT: input should be a valid integer"),
        ({}, {"TRIMTAB_PORT": ""}, "TRIMTAB_PORT is empty"),
        ({}, {"TRIMTAB_API_KEY": ""}, "TRIMTAB_API_KEY is empty"),
        ({}, {"TRIMTAB_ARTEFACT": ""}, "TRIMTAB_ARTEFACT is empty"),
        ({}, {"TRIMTAB_CONFIG": ""}, "TRIMTAB_CONFIG is empty"),
        ({"model": ""}, {}, "--model is empty"),
        ({"max_running": 0}, {"TRIMTAB_MAX_RUNNING": "4"}, "--max-running: "),
        ({"weights": "int3"}, {}, "--weights: input should be 'auto', 'fp32'"),
        ({}, {"TRIMTAB_KV_BUDGETS": "512,256"}, "TRIMTAB_KV_BUDGETS: expected a JSON list"),
        ({}, {"TRIMTAB_KV_BUDGETS": "[2]"}, "TRIMTAB_KV_BUDGETS: "),
        ({}, {"TRIMTAB_DRAIN_SECONDS": "inf"}, "TRIMTAB_DRAIN_SECONDS: input should be a finite"),
        ({}, {"TRIMTAB_STEP_TOKENS": "16", "TRIMTAB_MAX_RUNNING": "17"}, "at least max_running"),
    ],
)
def test_a_wrong_value_is_called_by_the_name_that_the_user_gave(
    options, environ, says, monkeypatch
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    refused(says, options, environ)


@pytest.mark.parametrize(
    ("option", "variable", "expected"),
    [("5", "4", 5), (None, "4", 4), (None, None, 3), ("5", None, 5)],
)
def test_options_go_before_variables_and_variables_before_the_file(
    option, variable, expected, config, monkeypatch
):
    environ = {} if variable is None else {"TRIMTAB_MAX_RUNNING": variable}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = read_settings({"max_running": option}, environ, config("max_running = 3"))
    assert settings.max_running == expected


def test_every_kind_of_value_can_be_given_in_text():
    given = {
        "port": "81", "ttft_ms": "1.5", "kv_budgets": "[64, 32]", "allowed_hosts": "a,b:1",
        "artefact": "folder", "speculate": False, "weights": "int8",
    }  # fmt: skip
    settings = read_settings(given, {})
    assert (settings.port, settings.ttft_ms, settings.kv_budgets) == (81, 1.5, (64, 32))
    assert (settings.allowed_hosts, settings.artefact) == (("a", "b:1"), Path("folder"))
    assert (settings.speculate, settings.weights) == (False, "int8")


def test_the_file_can_give_every_kind_of_value(config):
    text = """
        port = 81
        ttft_ms = 1500
        kv_budgets = [64, 32]
        allowed_hosts = ["a", "b:1"]
        artefact = "folder"
        speculate = false
        weights = "int8"
    """
    settings = read_settings({}, {}, config(text))
    assert (settings.port, settings.ttft_ms, settings.kv_budgets) == (81, 1500, (64, 32))
    assert (settings.allowed_hosts, settings.artefact) == (("a", "b:1"), Path("folder"))
    assert (settings.speculate, settings.weights) == (False, "int8")


def test_a_variable_names_the_file_and_the_option_goes_before_it(config, tmp_path):
    environ = {"TRIMTAB_CONFIG": str(config("port = 81"))}
    other = tmp_path / "other.toml"
    other.write_text("port = 82")
    assert read_settings({}, environ).port == 81
    assert read_settings({}, environ, other).port == 82


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_runing = 3", "there is no setting 'max_runing'; did you mean max_running?"),
        ("[engine]\nmax_running = 3", "there is no setting 'engine'"),
        ("max_running 3", "is no valid TOML: Expected '='"),
        ("port = 'abc'", "trimtab.toml: port: input should be a valid integer"),
        ("port = 70000", "trimtab.toml: port: input should be less than or equal to 65535"),
        ("port = [80]", "trimtab.toml: port: input should be a valid integer"),
        ("max_running = true", "trimtab.toml: max_running"),
        ("speculate = 1", "trimtab.toml: speculate: input should be true or false"),
        ("speculate = 'no'", "trimtab.toml: speculate: input should be true or false"),
        ("kv_budgets = [2]", "trimtab.toml: kv_budgets: "),
        ("kv_budgets = 'abc'", "trimtab.toml: kv_budgets: expected a JSON list"),
        ("model = ''", "trimtab.toml: model is empty"),
        ("model = 5", "trimtab.toml: model: input should be a valid string"),
        ("ttft_ms = inf", "trimtab.toml: ttft_ms: input should be a finite number"),
        ("device = 'tpu'", "trimtab.toml: device: input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(config, text: str, says: str):
    path = config(text)
    refused(says, {}, {}, path)
    refused(str(path), {}, {}, path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    refused("none.toml does not exist", {}, {}, tmp_path / "none.toml")
    refused(f"{tmp_path} is no file", {}, {}, tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    refused("is no valid TOML: it is not in UTF-8", {}, {}, binary)


@pytest.mark.parametrize("given", [("--config",), ()])
def test_the_command_refuses_a_wrong_file_with_exit_code_2(config, given, monkeypatch):
    path = config("max_runing = 3")
    if not given:
        monkeypatch.setenv("TRIMTAB_CONFIG", str(path))
    one_line(trimtab("serve", *given, *[path][: len(given)]), "did you mean max_running?")


def test_a_variable_that_nothing_reads_is_named_with_the_nearest():
    environ = {
        "TRIMTAB_MAXRUNNING": "3", "TRIMTAB_CACHE": "x", "TRIMTAB_NATIVE": "0", "HOME": "/",
        "trimtab_port": "1", "TRIMTAB_ISA": "avx2", "TRIMTAB_QQQQQQ": "1", "TRIMTAB_CONFIG": "x",
    }  # fmt: skip
    assert unknown_variables(environ) == [
        "TRIMTAB_MAXRUNNING is no setting and is ignored; did you mean TRIMTAB_MAX_RUNNING?",
        "TRIMTAB_QQQQQQ is no setting and is ignored",
    ]


@pytest.mark.slow
def test_every_variable_that_code_reads_is_known():
    root = Path(server.__file__).parent.parent
    for folder in ("server", "controller", "policies", "pruners", "telemetry"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and text.startswith("TRIMTAB_") and text.isupper():
                    assert text == "TRIMTAB_" or not unknown_variables({text: "1"}), path


def test_no_setting_has_the_name_of_the_option_for_the_file():
    assert "config" not in Settings.model_fields
