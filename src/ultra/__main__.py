"""`python -m ultra`: the same as the `ultra` command."""

from ultra.cli.main import main

main()
