"""Reads the settings from options, environment variables and a configuration file.

An option goes before a variable, and a variable before the file.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

from server.settings import PREFIX, Settings, SettingsError, option_name, variable_name

CONFIG_VARIABLE = "TRIMTAB_CONFIG"
"""Variable that names the configuration file, unless the option `--config` does."""
VARIABLES_READ_ELSEWHERE = ("TRIMTAB_CACHE", "TRIMTAB_NATIVE", "TRIMTAB_ISA")
"""Variables that are no settings: the folder of models, and which native kernels run."""


def read_settings(
    options: Mapping[str, Any], environ: Mapping[str, str], config: Path | None = None
) -> Settings:
    """Return the settings.

    `options` are those of the command line by setting; None stands for an option that was not
    given. `environ` is the environment of this process. `config` is a TOML file; None stands for
    the one that `TRIMTAB_CONFIG` names, if there is one. Raises `SettingsError`, which names the
    option, the variable or the file that is wrong.
    """
    given = {name: value for name, value in options.items() if value is not None}
    variables = {name.upper(): value for name, value in environ.items()}
    if config is None and CONFIG_VARIABLE in variables:
        if not variables[CONFIG_VARIABLE]:
            raise SettingsError(f"{CONFIG_VARIABLE} is empty: leave it out, or give a value")
        config = Path(variables[CONFIG_VARIABLE])
    settings_class, from_file = Settings, dict[str, Any]()
    if config is not None:
        settings_class, from_file = _with_file(config)

    def origin(name: str) -> str:
        """Return how the user calls the setting at the place where its value comes from."""
        if name in given:
            return option_name(name)
        is_from_file = name in from_file and variable_name(name) not in variables
        return f"{config}: {name}" if is_from_file else variable_name(name)

    for name in Settings.model_fields:
        fallback = variables.get(variable_name(name), from_file.get(name))
        if given.get(name, fallback) == "":
            raise SettingsError(f"{origin(name)} is empty: leave it out, or give a value")
    try:
        return settings_class(**given)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            message = f"{origin(str(first['loc'][0]))}: {message[:1].lower()}{message[1:]}"
        raise SettingsError(message) from error


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return one line for each `TRIMTAB_*` variable that nothing reads."""
    known = [name.upper() for name in Settings.model_fields]
    known += [name.removeprefix(PREFIX) for name in (CONFIG_VARIABLE, *VARIABLES_READ_ELSEWHERE)]
    lines = []
    for name in sorted(environ):
        rest = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and rest not in known:
            lines.append(f"{name} is no setting and is ignored{_hint(rest, known, PREFIX)}")
    return lines


def _with_file(path: Path) -> tuple[type[Settings], dict[str, Any]]:
    """Return a class of settings that also reads this file, and the file's content.

    Raises `SettingsError` for a file that cannot be read or is no TOML, and for a name in it that
    is no setting.
    """
    if not path.is_file():  # pydantic-settings would ignore it
        what = "is no file" if path.exists() else "does not exist"
        raise SettingsError(f"the configuration file {path} {what}")
    try:
        content: dict[str, Any] = TomlConfigSettingsSource(Settings, path).toml_data
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no valid TOML: {str(error).splitlines()[0]}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is no valid TOML: it is not in UTF-8") from error
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    for name, value in content.items():
        field = Settings.model_fields.get(name)
        if field is None:
            hint = _hint(name, Settings.model_fields)
            raise SettingsError(f"{path}: there is no setting '{name}'{hint}")
        # Pydantic takes true for 1 and 1 for true.
        if isinstance(value, bool) and field.annotation is not bool:
            raise SettingsError(f"{path}: {name}: input should not be true or false")
        if field.annotation is bool and not isinstance(value, bool):
            raise SettingsError(f"{path}: {name}: input should be true or false")

    class SettingsWithFile(Settings):
        """Settings that also come from a file, unless an option or a variable gives them."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Return the sources; the first that has a setting gives it."""
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    return SettingsWithFile, content


def _hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message that names the known name nearest to `name`, if one is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
