"""Check what the pages name: links, files, modules, commands, settings and metrics."""

import importlib
import json
import re
import tomllib

import pytest

from tests.support.documentation import PAGES, ROOT, all_blocks, read_page
from tests.support.documented_commands import (
    CHECKED,
    WrongCommandError,
    check_block,
    check_command,
    check_variable,
    split_commands,
)

LANGUAGES = {"sh", "python", "json", "toml", "text"}
FOLDERS = ("server", "controller", "policies", "pruners", "telemetry", "benchmarks", "tests")
FOLDERS += ("docs", "deploy", "examples")
WRITTEN_LATER = ("build/",)
"""What a command of the documentation makes."""
MAX_README_LINES = 150


@pytest.fixture(params=PAGES, ids=str)
def page(request):
    return read_page(request.param)


def problems_of(path, target):
    """Return what is wrong with a link to another page or file of the repository."""
    name, _, anchor = target.partition("#")
    linked = (ROOT / path.parent / name).resolve() if name else ROOT / path
    if not linked.exists():
        return [f"{target}: there is no such file"]
    if anchor and anchor not in read_page(linked.relative_to(ROOT)).anchors:
        return [f"{target}: there is no such heading"]
    return []


def test_links_lead_somewhere(page):
    inside = [target for target in page.links if "://" not in target]
    assert [problem for target in inside for problem in problems_of(page.path, target)] == []


def test_every_block_has_a_language_that_is_checked(page):
    assert [str(block) for block in page.blocks if block.language not in LANGUAGES] == []


def test_json_and_toml_blocks_parse(page):
    for block in page.blocks:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("block", all_blocks("sh"), ids=str)
def test_shell_blocks_name_commands_that_exist(block):
    """Also those that are not run. `curl` is run against a server, see `test_examples.py`."""
    check_block(block.text)


def test_a_shell_block_is_run_or_says_why_not():
    unmarked = [block for block in all_blocks("sh") if block.not_run is None]
    other = {str(b) for b in unmarked for words in split_commands(b.text) if words[0] != "curl"}
    assert other == set()


def test_names_of_the_python_api_exist(page):
    for name in re.findall(r"^::: ([\w.]+)$", page.prose, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_commands_in_the_text_exist(page):
    for span in page.spans:
        words = span.split()
        if len(words) > 1 and words[0].removeprefix(".venv/bin/") in CHECKED:
            check_command(words, whole=False)


def test_files_in_the_text_exist(page):
    named = [span for span in page.spans if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", span)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_modules_in_the_text_exist(page):
    missing = []
    for span in page.spans:
        if re.fullmatch(rf"({'|'.join(FOLDERS[:6])})(\.\w+)+", span) and not span.endswith(".py"):
            parts = span.split(".")
            places = [ROOT.joinpath(*parts), ROOT.joinpath(*parts[:-1])]
            if not any(p.is_dir() or p.with_suffix(".py").is_file() for p in places):
                missing.append(span)
    assert missing == []


def test_settings_in_the_text_exist(page):
    for name in re.findall(r"\bTRIMTAB_[A-Z_]*[A-Z]\b(?!\*)", page.prose):
        check_variable(name)


def test_metrics_in_the_text_exist(page):
    source = (ROOT / "telemetry" / "metrics.py").read_text()
    for span in page.spans:
        if named := re.match(r"trimtab_(\w+?)(_total)?(\{.*\})?$", span):
            assert f"trimtab_{named[1]}" in source or named[1] in source, span


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_mkdocs_lists_every_page():
    listed = set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {path.name for path in PAGES if path.parts[0] == "docs"}


@pytest.mark.parametrize(
    "command",
    [
        "trimtab serve --no-such-option 1",
        "trimtab no-such-command",
        "trimtab build --out DIR --search none",
        "train-policy --no-such-option",
        "make no-such-target",
        "make serve NO_SUCH_VARIABLE=1",
        "python -m benchmarks.no_such_benchmark",
        "python -m benchmarks.streams --no-such-option",
        ".venv/bin/python -m pytest tests/no/such/folder",
        "pip install 'trimtab[no-such-extra]'",
        "docker compose -f deploy/no-such-file.yaml up",
        "rm -rf build",
        "TRIMTAB_NO_SUCH_SETTING=1 trimtab serve",
    ],
)
def test_a_wrong_command_is_noticed(command):
    with pytest.raises(WrongCommandError):
        check_block(command)


@pytest.mark.parametrize("target", ["docs/no-such-page.md", "docs/variants.md#no-such-heading"])
def test_a_broken_link_is_noticed(target):
    assert problems_of(PAGES[0], target)


def test_the_page_of_the_architecture_names_every_folder():
    """One line for each folder that has code in it."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {
        path.parent.relative_to(ROOT)
        for name in FOLDERS[:5]
        for pattern in ("*.py", "*.cpp", "*.h")
        for path in (ROOT / name).rglob(pattern)
    }
    parents = [str(folder) for folder in folders if f"| `{folder}` |" not in page]
    assert [name for name in sorted(parents) if "csrc/arch/" not in name] == []
