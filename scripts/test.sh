#!/usr/bin/env bash
# Every check in one command from a fresh clone: installs into .venv; style, types, doctests and tests, and the trainer
# path once more on the oldest TRL and Transformers that are allowed (scripts/test_floor.sh).
# Arguments go to pytest, and leave the second part out: scripts/test.sh tests/core/test_spans.py -k quoted
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv dev

# Nothing may be fetched from a hub, and two processes with two threads each on two cores would slow each other down.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$venv_python" -m ruff check .
"$venv_python" -m ruff format --check .
"$venv_python" -m mypy
"$venv_python" -m pytest "$@"
[ $# -gt 0 ] || scripts/test_floor.sh
