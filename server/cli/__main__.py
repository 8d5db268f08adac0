"""`python -m server.cli` is the `trimtab` command."""

from server.cli.main import main

main()
