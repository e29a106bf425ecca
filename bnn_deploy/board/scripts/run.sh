#!/bin/sh
# Install, verify and profile the model of this bundle on the board that it was made for:
#
#     sh run.sh [--threads N] [--runs N]
#
# Checks the files, makes a virtual environment in ./venv, installs bnn-deploy into it, compares what this machine
# computes with the golden results, measures, and writes report.json. Interrupted, it leaves no half-made environment;
# repeated, it uses the one that is there. PYTHON names the Python that makes the environment (default: python3).
#
# Exit codes: 0 verified, 1 the results differ, 2 damaged bundle or wrong usage, 3 something is missing on this machine.
set -eu

# What else is on PYTHONPATH would be imported instead of what is installed here.
unset PYTHONPATH
CDPATH='' cd -- "$(dirname -- "$0")"

say() { printf '%s\n' "$*" >&2; }

fail() {
    code=$1
    shift
    say "error: $*"
    exit "$code"
}

# A program, in a process group of its own where setsid is there, so that an interruption ends it with all its children.
child=
run() {
    if command -v setsid >/dev/null 2>&1; then
        setsid "$@" &
        child=-$!
    else
        "$@" &
        child=$!
    fi
    code=0
    wait "${child#-}" || code=$?
    child=
    return "$code"
}

making=
# shellcheck disable=SC2329  # called by the trap
cleanup() {
    trap '' HUP INT TERM PIPE
    if [ -n "$child" ]; then
        kill -TERM "$child" 2>/dev/null || :
        wait "${child#-}" 2>/dev/null || :
        # Its own children may still be writing into venv.
        for _ in 1 2 3 4 5 6 7 8 9; do
            kill -0 "$child" 2>/dev/null || break
            sleep 0.2
            kill -KILL "$child" 2>/dev/null || :
        done
    fi
    [ -z "$making" ] || rm -rf venv
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

usage='usage: sh run.sh [--threads N] [--runs N]'
threads=1
runs=50
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail 2 "$usage"
    case $2 in '' | 0* | *[!0-9]*) fail 2 "$1 is '$2': it must be a number from 1 on; $usage" ;; esac
    case $1 in
        --threads) threads=$2 ;;
        --runs) runs=$2 ;;
        *) fail 2 "unknown option '$1'; $usage" ;;
    esac
    shift 2
done

say '[1/5] checking the files'
for program in sha256sum grep sed uname; do
    command -v "$program" >/dev/null 2>&1 || fail 3 "$program is missing: sudo apt install coreutils grep sed"
done
sha256sum -c --quiet --strict SHA256SUMS >&2 || fail 2 'the bundle is damaged, nothing was run: copy it again'
for file in manifest.json model.onnx golden.npz run.sh requirements.txt wheels/* app.service service.sh; do
    case $file in app.service | service.sh) [ -e "$file" ] || continue ;; esac # not of every bundle
    cut -c 67- SHA256SUMS | grep -qxF -- "$file" ||
        fail 2 "$file is not in SHA256SUMS, nothing was run: unpack the bundle anew"
done
field() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" manifest.json; }
target=$(field target)
wheel=$(field wheel)
offline=$(field offline)

# Two at once would make the same environment. The lock goes with the last process that holds it.
if command -v flock >/dev/null 2>&1; then
    exec 9<SHA256SUMS
    flock -n 9 || fail 3 'another run.sh is at work in this folder: wait for it'
fi

say '[2/5] looking at this machine'
PYTHON=${PYTHON:-python3}
machine=$(uname -m)
[ "$machine" = "$target" ] || fail 3 "this machine is $machine, the bundle is for $target: make one with --target $machine"
command -v "$PYTHON" >/dev/null 2>&1 || fail 3 "$PYTHON is missing: sudo apt install python3 python3-venv"
found=$("$PYTHON" -c 'import struct, sys
print("%d.%d %d" % (sys.version_info[0], sys.version_info[1], 8 * struct.calcsize("P")))') || fail 3 "$PYTHON does not run"
version=${found% *}
case $version in
    3.[0-9] | [!3].*) fail 3 "$PYTHON is Python $version: 3.10 or newer is needed; set PYTHON to one, or update the system" ;;
esac
case $found in
    *' 64') ;;
    *) fail 3 "$PYTHON is a ${found#* }-bit program: install a 64-bit system" ;;
esac
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail 3 "the module venv of $PYTHON is missing: sudo apt install python3-venv"

# The environment is for this bundle and this Python.
wanted="$(sha256sum SHA256SUMS | cut -c 1-64) $version"
if [ "$(cat venv/complete 2>/dev/null)" = "$wanted" ] && venv/bin/python -c '' 2>/dev/null; then
    say '[3/5] the virtual environment is there'
    say '[4/5] bnn-deploy is installed'
else
    say "[3/5] making a virtual environment with Python $version"
    making=yes
    rm -rf venv
    run "$PYTHON" -m venv venv >&2 || fail 3 "the virtual environment cannot be made here: see above (disk full?)"
    if [ "$offline" = true ]; then
        say '[4/5] installing bnn-deploy from the bundle'
        set -- --no-index
    else
        say '[4/5] installing bnn-deploy; what it needs comes from the network'
        set --
    fi
    run venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input "$@" \
        --find-links wheels --only-binary :all: --requirement requirements.txt "$wheel" 2>venv/errors >&2 || {
        cat venv/errors >&2
        # Without a network, pip finds no version at all.
        lacking=$(sed -n 's/.*satisfies the requirement \([^ ;]*\).*(from versions: [^n].*/\1/p' venv/errors)
        [ -z "$lacking" ] ||
            fail 3 "pip finds no wheel of $lacking for Python $version on $machine, and with this version the golden results" \
                "were made: update the system, or make the bundle where a version is installed that has one"
        fail 3 'the installation failed: see above; without a network, make the bundle with all wheels (bundle --wheels)'
    }
    printf '%s\n' "$wanted" >venv/complete
    making=
fi

say '[5/5] verifying and profiling'
code=0
run venv/bin/bnn-deploy run-bundle . --report report.json --threads "$threads" --runs "$runs" || code=$?
[ "$code" -gt 1 ] || say 'wrote report.json'
exit "$code"
