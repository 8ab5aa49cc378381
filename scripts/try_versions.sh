#!/usr/bin/env bash
# Runs the tests that an upgrade could break with one pair of versions, in a small environment on top of .venv, which is
# not changed.
#
#   scripts/try_versions.sh TRL TRANSFORMERS [arguments for pytest]
#   scripts/try_versions.sh 1.14.2 5.20.0
#   EXTRA="tokenizers==0.22.2" scripts/try_versions.sh 1.9.0 5.0.0
#
# The tests are: conformance (every template on real tokenizers), golden masks and the trainer's tests; from trl 1.15 on,
# which supports token weights, also the exactness of losses and gradients and the tests marked `newest`.
# Exit code: that of pytest, or that of pip if the pair cannot be installed.
set -euo pipefail
source "$(dirname "$0")/env.sh"

if [ $# -lt 2 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$PWD/scripts/try_versions.sh"
    [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ] && exit 0
    exit 2
fi
trl=$1 transformers=$2
shift 2

install_into_venv dev

pair=.venv/try-$trl-$transformers
pair_python="$PWD/$pair/bin/python"
stamp=$pair/installed
wanted="trl==$trl transformers==$transformers ${EXTRA:-} $(cat .venv/installed-dev)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing trl $trl and transformers $transformers into $pair"
    "$venv_python" -m venv --clear --without-pip "$pair"
    folder() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    # What is not installed here is found in .venv, including the project's own editable installation.
    echo "import site; site.addsitedir('$(folder "$venv_python")')" >"$(folder "$pair_python")/newest.pth"
    pip=("$venv_python" -m pip --python "$pair_python" --disable-pip-version-check install --quiet)
    # shellcheck disable=SC2086 # several requirements in one variable
    "${pip[@]}" --no-deps "trl==$trl" "transformers==$transformers" ${EXTRA:-}
    # Only the dependencies that these versions need in a different version than .venv has.
    "$pair_python" - >"$pair/needs" <<'PYTHON'
import importlib.metadata as metadata
from packaging.requirements import Requirement

for name in ("trl", "transformers"):
    for line in metadata.requires(name) or ():
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            fits = need.specifier.contains(metadata.version(need.name), prereleases=True)
        except metadata.PackageNotFoundError:
            fits = False
        if not fits:
            print(need)
PYTHON
    [ ! -s "$pair/needs" ] || "${pip[@]}" --requirement "$pair/needs"
    echo "$wanted" >"$stamp"
fi

"$pair_python" - "$trl" "$transformers" <<'PYTHON'
import importlib.metadata as metadata, sys
for name, wanted in zip(("trl", "transformers"), sys.argv[1:]):
    here = metadata.version(name)
    print(f"{name} {here}")
    if here != wanted:
        sys.exit(f"{name} {here} was found instead of {wanted}: remove the folder .venv/try-* and try again.")
PYTHON

tests=(templates/test_conformance templates/test_golden trainer/test_entry data/test_dataset data/test_signatures
       trainer/test_evaluation trainer/test_hook)
if [ "$(printf '%s\n' "$trl" 1.15 | sort --version-sort | head -n 1)" = 1.15 ]; then
    tests+=(trainer/test_exactness) chosen=""
else
    tests+=(trainer/test_floor) chosen="not newest"
fi
run_pytest "$pair_python" -p no:cacheprovider -m "$chosen" $(printf 'tests/%s.py ' "${tests[@]}") "$@"
