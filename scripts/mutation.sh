#!/usr/bin/env bash
# Would a test notice? mutmut changes sft_mask/core, one expression at a time, and for each change runs those tests of
# tests/core that reach it. Prints how many changes of each module turned a test red, and the names of those that did not.
#
#   scripts/mutation.sh                      # all of core
#   scripts/mutation.sh labels label_codec   # some modules
#   .venv/bin/mutmut show NAME               # the change of that name
#
# Settings are in pyproject.toml under [tool.mutmut]; messages of errors are not changed. Exit code 1: a change survived.
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv mutation

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
unset PYTHONPATH # mutmut puts the changed copy first on the path
rm -rf mutants
modules=("${@/#/sft_mask.core.}")
"$venv_python" -m mutmut run "${modules[@]/%/.*}"

"$venv_python" - <<'PYTHON'
import json, pathlib, sys
from collections import Counter

from mutmut.stats import status_by_exit_code

KILLED = ("killed", "timeout", "segfault")

total, survivors = Counter(), []
for file in sorted(pathlib.Path("mutants/sft_mask/core").rglob("*.meta")):
    outcomes = json.loads(file.read_text())["exit_code_by_key"]
    verdicts = {name: status_by_exit_code[code] for name, code in outcomes.items() if code is not None}
    count = Counter("killed" if verdict in KILLED else "alive" for verdict in verdicts.values())
    if count:
        print(f"{file.name.removesuffix('.py.meta'):16} {count['killed']:5} of {count.total():5} killed")
    total += count
    survivors += [f"{verdict:10} {name}" for name, verdict in verdicts.items() if verdict not in KILLED]
print(f"{'all':16} {total['killed']:5} of {total.total():5} killed", *survivors, sep="\n")
sys.exit(bool(survivors))
PYTHON
