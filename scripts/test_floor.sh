#!/usr/bin/env bash
# The same library on the oldest TRL and Transformers that pyproject.toml allows: a small environment in front of .venv.
# Arguments go to pytest. scripts/test.sh calls it; tests marked `newest` are left out.
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv dev

stack_on_venv floor requirements/floor.txt
floor_python=$stacked_python

"$floor_python" - <<'PYTHON'
import importlib.metadata, re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
needs = " ".join(project["dependencies"] + project["optional-dependencies"]["train"])
for name in ("trl", "transformers"):
    oldest = re.search(rf"\b{name}>=([\d.]+)", needs)[1]
    here = importlib.metadata.version(name)
    print(f"{name} {here} is installed, {oldest} is the oldest allowed")
    if not (here == oldest or here.startswith(f"{oldest}.")):
        sys.exit(f"requirements/floor.txt has {name} {here}: pin the oldest that pyproject.toml allows.")
PYTHON

run_pytest "$floor_python" -m "not newest" -p no:cacheprovider \
    tests/trainer/test_{floor,hook,entry,evaluation}.py tests/data/test_{dataset,signatures}.py "$@"
