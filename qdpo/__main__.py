"""`python -m qdpo` is the `qdpo` command."""

from qdpo.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
