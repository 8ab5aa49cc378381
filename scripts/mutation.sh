#!/usr/bin/env bash
# Would a test notice? mutmut changes sft_mask/core, one expression at a time, and for each change runs those tests of
# tests/core that reach it. Prints how many changes of each module turned a test red, then every change that did not.
#
#   scripts/mutation.sh                                         # all of core: hours
#   scripts/mutation.sh labels label_codec                      # these modules
#   TESTS=tests/core/test_labels.py scripts/mutation.sh labels  # judged by these tests only: minutes
#
# Messages of errors are not changed, tests marked `slow` are left out. Exit code 1: a change survived.
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv mutation

# A copy, because mutmut writes beside what it changes.
copy=.venv/mutation
rm -rf "$copy"
mkdir "$copy"
cp -r sft_mask tests recipes "$copy"
{
    cat pyproject.toml
    cat <<TOML

[tool.mutmut]
source_paths = ["sft_mask"]
only_mutate = ["sft_mask/core/*.py"]
also_copy = ["recipes"]
do_not_mutate_patterns = ['^ *raise ']
track_dependencies = false
# Hypothesis draws the same cases for every change, and does not take a busy processor for a failure.
pytest_add_cli_args = ["-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-profile=ci"]
pytest_add_cli_args_test_selection = ["${TESTS:-tests/core}"]
TOML
} >"$copy/pyproject.toml"
cd "$copy"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
unset PYTHONPATH # mutmut puts the changed files first on the path
modules=("${@/#/sft_mask.core.}")
"$venv_python" -m mutmut run "${modules[@]/%/.*}"

"$venv_python" - <<'PYTHON'
import json, pathlib, sys
from collections import Counter

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

KILLED = ("killed", "timeout", "segfault")

total, survivors = Counter(), []
for file in sorted(pathlib.Path("mutants/sft_mask/core").rglob("*.meta")):
    outcomes = json.loads(file.read_text())["exit_code_by_key"]
    verdicts = {name: status_by_exit_code[code] for name, code in outcomes.items() if code is not None}
    survivors += [(name, verdict) for name, verdict in verdicts.items() if verdict not in KILLED]
    killed = sum(verdict in KILLED for verdict in verdicts.values())
    total.update(made=len(verdicts), killed=killed)
    if verdicts:
        print(f"{file.name.removesuffix('.py.meta'):16} {killed:5} of {len(verdicts):5} killed")
print(f"{'all':16} {total['killed']:5} of {total['made']:5} killed")
for name, verdict in survivors:
    print(f"\n{verdict}: {get_diff_for_mutant(name)}")
sys.exit(bool(survivors))
PYTHON
