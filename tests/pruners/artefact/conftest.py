from pathlib import Path

import pytest

from tests.support.artefacts import example_artefact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artefact's folder, which a test may damage."""
    example_artefact().save(tmp_path / "artefact")
    return tmp_path / "artefact"
