#!/usr/bin/env bash
# One command from a fresh clone to a fine-tuned model: installs into .venv, then runs recipes/quickstart.py.
# Arguments are passed to the recipe: scripts/quickstart.sh --help
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv quickstart

# By default glibc returns every large buffer to the system and requests it again in each step; keeping them saves a tenth.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-8000000000}"
exec "$venv_python" recipes/quickstart.py "$@"
