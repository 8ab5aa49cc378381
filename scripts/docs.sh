#!/usr/bin/env bash
# The site, in one command: installs into .venv, then builds the pages and the search into site/ (no network needed for that).
# A warning is an error. Arguments are passed to sphinx-build: scripts/docs.sh --fresh-env
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv docs
"$venv_python" -m sphinx --builder html --conf-dir docs --fail-on-warning --keep-going --quiet "$@" . site
echo "Open site/index.html"
