#!/usr/bin/env bash
# Every launch configuration on two CPU processes, with DeepSpeed and bitsandbytes in an environment in front of .venv.
#
#   scripts/test_launch.sh                  the tests of tests/launch: five minutes on two cores; scripts/test.sh --all runs some
#   scripts/test_launch.sh -k zero3         arguments go to pytest
#   scripts/test_launch.sh --table          every training, and the table of docs/launch.md: half an hour
#   scripts/test_launch.sh --table zero3    one row of it
set -euo pipefail
source "$(dirname "$0")/env.sh"

install_into_venv dev
stack_on_venv launch requirements/launch.txt

if [ "${1:-}" = "--table" ]; then
    shift
    HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false LAUNCH_SECONDS=1800 \
        "$stacked_python" -W ignore scripts/launches.py "$@"
    exit
fi
# Each launch has two processes, so one at a time.
WORKERS=0 run_pytest "$stacked_python" -p no:cacheprovider tests/launch "$@"
