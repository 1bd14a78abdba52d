"""`python -m pipeline.cli` is `yyc3`."""

from pipeline.cli import main

main()
