"""`trimtab key`: a key that lets in, by the line that it prints for the file of keys."""

import pytest

from server.api.access.keys import open_key_ring
from server.api.access.scopes import Scope
from tests.support.commands import one_line, trimtab


def test_a_new_key_opens_its_scopes_by_the_line_that_is_printed(tmp_path):
    found = []
    for _ in range(2):
        done = trimtab("key", "--scopes", "infer,metrics")
        assert done.returncode == 0, done.stderr
        key, line = done.stdout.splitlines()
        (tmp_path / "keys").write_text(line)
        held = open_key_ring((), tmp_path / "keys").find(key.encode())
        assert held.opens(Scope.METRICS)
        assert not held.opens(Scope.ADMIN)
        assert key not in line
        assert len(key) > 40
        found.append(key)
    assert found[0] != found[1]


@pytest.mark.parametrize("scopes", ["", "infer,all", "public"])
def test_a_scope_that_there_is_not_is_refused(scopes):
    one_line(trimtab("key", "--scopes", scopes), "scopes are admin, infer, metrics")
