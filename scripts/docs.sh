#!/usr/bin/env bash
# The site, in one command: installs into .venv, then builds the pages and their search into site/, without a network.
# A warning is an error. Arguments are passed to Sphinx: scripts/docs.sh --jobs 2
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv docs
"$venv_python" -m sphinx --builder html --conf-dir docs --fresh-env --write-all --fail-on-warning --keep-going --quiet "$@" . site/html
echo "Open site/html/index.html"
