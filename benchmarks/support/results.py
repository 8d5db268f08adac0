"""Options that all benchmarks share, and how their results are saved."""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from pruners.support.files import TargetError, check_file, write_json

RESULTS = Path(__file__).parents[1] / "results"


def spread(values: list[float]) -> float:
    """Return half the range over the median: how far single runs were off."""
    return (max(values) - min(values)) / 2 / median(values)


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument(
        "--json", type=_writable_file, help="the result's file; default benchmarks/results"
    )
    return options


def _writable_file(name: str) -> Path:
    path = Path(name)
    try:
        check_file(path)
    except TargetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def options_as_json(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a run as its result holds them: of paths only the file's name."""
    return {
        name: value.name if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name != "json"
    }


def save_result(name: str, result: dict[str, Any], path: Path | None = None) -> Path:
    """Write a result as JSON to `path`, by default to `benchmarks/results/NAME.json`."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, result)
