#!/usr/bin/env bash
# Runs the unit tests on each supported Python, in a fresh environment that `make setup` creates:
#
#   tests/pythons.sh              3.10, 3.11 and 3.12, those that this machine has
#   tests/pythons.sh 3.10         only this one
#   STACK=today tests/pythons.sh 3.13
#   PYTHON_3_10=/path/to/python tests/pythons.sh 3.10
#
# A Python is taken from that variable, from PATH, from pyenv or from uv. An environment takes about five minutes and
# 6 GB, and is removed afterwards (KEEP=1 keeps it). Exit status 1 if the tests fail anywhere, or no Python is found.
set -u
cd "$(dirname "$0")/.."

is_python() {  # whether $1 runs and is Python $2
    [ -n "$1" ] && [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$2" ]
}

find_python() {  # prints the path of a Python $1
    local variable="PYTHON_${1/./_}" candidate
    for candidate in "${!variable:-}" \
        "$(command -v "python$1")" \
        "$(command -v pyenv >/dev/null && ls -d "$(pyenv root)/versions/$1".*/bin/python 2>/dev/null | tail -1)" \
        "$(command -v uv >/dev/null && uv python find "$1" 2>/dev/null)"; do
        is_python "$candidate" "$1" && echo "$candidate" && return
    done
    return 1
}

tested="" failed="" missing=""
[ $# -gt 0 ] || set -- 3.10 3.11 3.12
for version in "$@"; do
    if ! python=$(find_python "$version"); then
        missing="$missing $version"
        continue
    fi
    venv=".venv-$version"
    echo "==> Python $version ($python) in $venv"
    rm -rf "$venv"
    tested="$tested $version"
    make --no-print-directory setup test VENV="$venv" PYTHON="$python" || failed="$failed $version"
    [ -n "${KEEP:-}" ] || rm -rf "$venv"
done
echo "==> Tested on Python:${tested:- none}; failed:${failed:- none}; not on this machine:${missing:- none}"
[ -n "$tested" ] && [ -z "$failed" ]
