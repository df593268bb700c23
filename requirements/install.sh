#!/usr/bin/env bash
# Makes .venv from requirements/lock.txt: every package by hash, torch by its exact pin, this checkout as editable.
# Run it through `make install`. Exit 3: something is missing on this machine; then nothing half-installed stays behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
previous=.venv.previous
lock=requirements/lock.txt
log=$(mktemp)

fail() {
    printf 'set-up: %s\n' "$1" >&2
    exit 3
}

# An environment is complete or absent: on any failure, Ctrl-C included, the former one comes back, or none at all.
clean_up() {
    status=$?
    rm -f "$log"
    if [ "$status" -ne 0 ] && [ -n "${rebuilding:-}" ]; then
        rm -rf "$venv"
        if [ -d "$previous" ]; then mv "$previous" "$venv"; fi
    fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

probe='
import sys, ensurepip, venv
if sys.version_info < (3, 11):
    sys.exit(1)
print(sys._base_executable)
'

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        # The base interpreter: an activated .venv must not be asked to rebuild itself.
        if found=$("$candidate" -c "$probe" 2>"$log"); then
            printf '%s' "$found"
            return
        fi
    done
    fail "no Python 3.11 or newer with venv and ensurepip was found; install one or name it with PYTHON=/path/to/python3."
}

reason() {
    if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
        printf 'a package does not have the hash that %s states, so it was refused' "$lock"
    elif grep -qE 'No matching distribution|connection|Connection|resolve|timed out|Network is unreachable' "$log"; then
        printf 'no package index could be reached, and the first set-up needs one'
    else
        printf 'pip failed (%s)' "$(grep -E '^ERROR' "$log" | head -n 1 | cut -c 1-200)"
    fi
}

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "$@" >"$log" 2>&1 || fail "$(reason); nothing was installed."
}

python=$(find_python)
torch=$(sed -n 's/^ *"\(torch==[^"]*\)",*$/\1/p' pyproject.toml | head -n 1)
wanted=$(printf '%s\n%s\n' "$torch" "$("$python" -c 'import sys; print(sys.version)')" | cat - "$lock")

if [ ! -f "$venv/.lock" ] || [ "$wanted" != "$(cat "$venv/.lock")" ]; then
    printf 'set-up: installing the locked packages into %s (some minutes, this once)\n' "$venv"
    rebuilding=yes
    rm -rf "$previous"
    if [ -d "$venv" ]; then mv "$venv" "$previous"; fi
    "$python" -m venv "$venv" >"$log" 2>&1 || fail "$python could not make a virtual environment; nothing was installed."
    pip_install --require-hashes --no-deps -r "$lock"
    pip_install "$torch"
    pip_install --no-deps --no-build-isolation -e .
    printf '%s\n' "$wanted" >"$venv/.lock"
    rm -rf "$previous"
else
    pip_install --no-deps --no-build-isolation -e .
fi
touch "$venv/.installed"
