# What is run while working on qdpo. `just` lists it; CONTRIBUTING.md says more.

default:
    @just --list

# an environment to work in: .venv, with everything that tests and docs need
setup:
    python3 -m venv .venv
    .venv/bin/pip install -c constraints.txt -e '.[test,docs]'

# lint, format, types, dependencies
check:
    ruff check .
    ruff format --check .
    mypy
    deptry .

# tests of one room, or of all: `just test tests/data`
test *args:
    pytest {{ args }}

# the parts of README and docs that are made from the code and from results
parts:
    python tools/docs_parts.py

# the site, where a warning is an error
docs:
    zensical build --strict

# all that a change must pass, in a fresh environment
ci *args:
    .ci/run {{ args }}
