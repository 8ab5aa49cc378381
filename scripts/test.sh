#!/usr/bin/env bash
# The checks, in one command from a fresh clone: installs into .venv, then style, types, doctests and tests.
#
#   scripts/test.sh                         without the tests marked `slow`: at most 8 minutes on two cores
#   scripts/test.sh --all                   what CI runs: every test, the trainer's also on the oldest versions allowed
#                                           (scripts/test_floor.sh), and launches with DDP, FSDP2 and QLoRA; all others
#                                           (ZeRO, two nodes, tensor and sequence parallelism): scripts/test_launch.sh
#   scripts/test.sh tests/core -k quoted    arguments (after --all) go to pytest
#
# WORKERS is how many processes run tests (2); 0 runs them in pytest's own, as --pdb needs.
set -euo pipefail
source "$(dirname "$0")/env.sh"

selection=(-m "not slow") everything=false
if [ "${1:-}" = "--all" ]; then
    shift
    selection=(--ignore tests/launch) everything=true
fi
[ $# = 0 ] || everything=false

install_into_venv dev
"$venv_python" -m ruff check .
"$venv_python" -m ruff format --check .
"$venv_python" -m mypy
run_pytest "$venv_python" ${selection[@]+"${selection[@]}"} "$@"
if $everything; then
    scripts/test_floor.sh
    scripts/test_launch.sh -k "(ddp or fsdp2) and not dies"
fi
