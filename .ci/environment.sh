# Sourced by tests/run, sample_app/run, .ci/run and .ci/renew-constraints: finding interpreters and making virtual environments.
# bash 4 or newer; nothing else than a Python >= 3.11 is taken for granted.

# Compiled once, and not in each of a thousand processes: some machines have Python keep no bytecode.
unset PYTHONDONTWRITEBYTECODE

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

# need_venv PYTHON: ends with advice unless it can make one.
need_venv() {
    local python=$1 version
    has_venv "$python" && return
    version=$(python_version "$python")
    apt_install "python$version-venv" && has_venv "$python" || die \
        "$python cannot make a virtual environment: its modules venv and ensurepip are missing." \
        "On Debian and Ubuntu: apt-get install python$version-venv (as root this script does it by itself)." \
        "Elsewhere name a complete interpreter: PYTHON=/path/to/python $0"
}

# constraints: the file of pins by which everything is installed; LOWEST=1 takes the lowest versions.
constraints() { printf '%s\n' "$root/.ci/constraints${LOWEST:+-lowest}.txt"; }

# new_venv PYTHON DIRECTORY: an empty virtual environment with the pinned pip in it (older ones know no groups).
new_venv() {
    local python=$1 venv=$2
    need_venv "$python"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    install_into "$venv" --upgrade pip
    # Python 3.11 puts it in, of a version that nobody has pinned.
    "$venv/bin/python" -m pip --disable-pip-version-check uninstall --quiet --yes setuptools 2>/dev/null
}

# by_the_pins VENV COMMAND…: runs a command of the environment; what it has pip install, isolated builds too, is pinned.
by_the_pins() {
    local venv=$1 command=$2 pins
    shift 2
    # As a URL: pip splits the variables at blanks, which the folder's name may have.
    pins=$("$venv/bin/python" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())' "$(constraints)")
    PIP_CONSTRAINT=$pins PIP_BUILD_CONSTRAINT=$pins "$venv/bin/$command" "$@"
}

# install_into VENV ARGUMENT…: pip install by the pins.
install_into() {
    local venv=$1
    shift
    by_the_pins "$venv" python -m pip install --quiet --disable-pip-version-check "$@"
}

# make_venv PYTHON DIRECTORY GROUP: a virtual environment with the project, editable, and that dependency group in it.
# Left alone while it was made from the same interpreter, place, pyproject.toml and pins.
make_venv() {
    local python=$1 venv=$2 group=$3 stamp
    stamp="$("$python" -V) $root [$group] $(cat "$root/pyproject.toml" "$(constraints)" | cksum)"
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    say "setting up ${venv##*/} ($("$python" -V), group $group) …"
    new_venv "$python" "$venv"
    install_into "$venv" --editable "$root" --group "$root/pyproject.toml:$group"
    printf '%s\n' "$stamp" >"$venv/.stamp"
}
