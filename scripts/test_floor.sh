#!/usr/bin/env bash
# The same library on the oldest TRL and Transformers that pyproject.toml allows: a small environment in front of .venv.
# Arguments go to pytest. scripts/test.sh calls it; tests marked `newest` are left out.
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv dev

floor=.venv/floor
floor_python="$PWD/$floor/bin/python"
stamp=$floor/installed
if [ "$(cat "$stamp" 2>/dev/null)" != "$(cat requirements/floor.txt .venv/installed-dev)" ]; then
    echo "Installing the versions of requirements/floor.txt into $floor"
    "$venv_python" -m venv --clear --without-pip "$floor"
    folder() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    # What is not installed here is found in .venv, the project's own editable installation included.
    echo "import site; site.addsitedir('$(folder "$venv_python")')" >"$(folder "$floor_python")/newest.pth"
    "$venv_python" -m pip --python "$floor_python" --disable-pip-version-check install --quiet \
        --requirement requirements/floor.txt
    cat requirements/floor.txt .venv/installed-dev >"$stamp"
fi

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
