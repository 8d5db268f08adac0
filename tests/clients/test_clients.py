"""Real client libraries against a live server: each file of `programs` is the tests of one.

They run in an environment of their own, which has what `requirements.txt` names.
"""

import pytest

from tests.support.client_programs import PROGRAMS, run_program


@pytest.mark.parametrize(
    "program", sorted(PROGRAMS.glob("*_client.py")), ids=lambda path: path.stem
)
def test_a_client_works(clients_server, tmp_path, program):
    run_program(program, clients_server, tmp_path)
