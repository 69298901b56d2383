# Sourced by tests/run, sample_app/run and .ci/run: finding interpreters and making virtual environments.
# bash 4 or newer; nothing else than a Python >= 3.11 is taken for granted.

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# python_version PYTHON: "3.12" when it runs and is CPython >= 3.11 (a final release), else fails.
# It is run, not looked at: pyenv's shims exist for versions that are not active.
python_version() {
    "$1" -c '
import sys
if sys.version_info < (3, 11) or sys.version_info.releaselevel != "final" or sys.implementation.name != "cpython":
    sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# has_venv PYTHON: whether it can make a virtual environment with pip (Debian ships that apart).
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# apt_install PACKAGE…: installs them where that is possible without asking anybody; else fails.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing with apt-get: $*"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"; } >&2
}

# offer_program PROGRAM PACKAGE: sees to a program that some tests use. Without it they are skipped, or fail where CI=true.
offer_program() {
    PATH=$PATH:/usr/local/sbin:/usr/sbin command -v "$1" >/dev/null && return
    (
        # Debian starts a server that it installs, unless this file forbids it: the tests run their own.
        policy=/usr/sbin/policy-rc.d
        if [ "$(id -u)" = 0 ] && [ ! -e $policy ]; then
            trap 'rm -f $policy' EXIT
            printf '#!/bin/sh\nexit 101\n' >$policy
            chmod 755 $policy
        fi
        apt_install "$2"
    ) || say "$1 is not there; tests that need it are skipped. On Debian and Ubuntu: apt-get install $2"
}

# default_python: $PYTHON, else the first of python3, python3.14 … python3.11 that is new enough.
default_python() {
    if [ -n "${PYTHON:-}" ]; then
        python_version "$PYTHON" >/dev/null || die "PYTHON=$PYTHON does not run, or is not CPython 3.11 or newer."
        printf '%s\n' "$PYTHON"
        return
    fi
    local candidate
    for candidate in python3 python3.{20..11}; do
        if python_version "$candidate" >/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "No Python 3.11 or newer found on PATH." "Install one, or name it: PYTHON=/path/to/python $0"
}

# make_venv PYTHON DIRECTORY EXTRAS: a virtual environment with the project, editable, and its EXTRAS in it.
# Left alone while it was made from the same interpreter, place and pyproject.toml.
make_venv() {
    local python=$1 venv=$2 extras=$3 version stamp
    version=$(python_version "$python")
    stamp="$("$python" -V) $root [$extras] $(cksum <"$root/pyproject.toml")"
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    if ! has_venv "$python"; then
        apt_install "python$version-venv" && has_venv "$python" || die \
            "$python cannot make a virtual environment: its modules venv and ensurepip are missing." \
            "On Debian and Ubuntu: apt-get install python$version-venv (as root this script does it by itself)." \
            "Elsewhere name a complete interpreter: PYTHON=/path/to/python $0"
    fi
    say "setting up ${venv##*/} (Python $version, [$extras]) …"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$extras]"
    printf '%s\n' "$stamp" >"$venv/.stamp"
}
