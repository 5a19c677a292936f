#!/bin/sh
# Make .venv and install this package into it with the extras named by the first argument, every version as
# constraints.txt says. Needs Python 3.11 or newer, which $PYTHON names (default: python3); gets uv itself.
# `make` calls this; every failure is one clear line and exit code 2.
set -u

extras=${1:?usage: tools/environment.sh EXTRAS}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.." || exit 2
goal=${MAKE_GOAL:-demo}
log=.uv/log

die() {
    echo "codetr_lab: $*" >&2
    exit 2
}

last_words() {
    grep -v '^ *$' "$log" | tail -n 1
}

command -v "$python" >/dev/null 2>&1 ||
    die "there is no $python here. Install Python 3.11 or newer (Debian/Ubuntu: apt-get install python3 python3-venv)," \
        "or name yours: make $goal PYTHON=/path/to/python3"
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
    die "$python does not run; name another one: make $goal PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is Python $version, but 3.11 or newer is needed. Name a newer one: make $goal PYTHON=python3.12"

mkdir -p .uv 2>/dev/null || die "cannot write to $PWD; clone the repository where you may write"
: >"$log" || die "cannot write to $PWD/$log"

# uv: the user's, or one of our own. A private environment, because Debian's Python takes no packages (PEP 668);
# where Debian's python3-venv is missing, pip alone is enough.
if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then
    uv=uv
elif [ -x .uv/venv/bin/uv ] && .uv/venv/bin/uv --version >/dev/null 2>&1; then
    uv=.uv/venv/bin/uv
elif [ -x .uv/target/bin/uv ] && .uv/target/bin/uv --version >/dev/null 2>&1; then
    uv=.uv/target/bin/uv
else
    echo "codetr_lab: getting uv, which installs the packages"
    if "$python" -m venv --clear .uv/venv >>"$log" 2>&1; then
        .uv/venv/bin/python -m pip install --quiet uv >>"$log" 2>&1 || die "pip could not get uv: $(last_words)"
        uv=.uv/venv/bin/uv
    elif "$python" -m pip --version >>"$log" 2>&1; then
        rm -rf .uv/venv
        "$python" -m pip install --quiet --target .uv/target --upgrade uv >>"$log" 2>&1 ||
            die "pip could not get uv: $(last_words)"
        uv=.uv/target/bin/uv
    else
        rm -rf .uv/venv
        die "$python has neither venv nor pip. Debian/Ubuntu: apt-get install python3-venv"
    fi
fi

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    "$uv" venv --quiet --clear --python "$python" .venv 2>"$log" || die "no environment in .venv: $(last_words)"
fi

echo "codetr_lab: installing into .venv (extras: $extras); the first time this downloads a few gigabytes"
"$uv" pip install --python .venv/bin/python --compile-bytecode --constraints constraints.txt --editable ".[$extras]" ||
    die "the packages could not be installed; uv says why above. What is there stays: mend it and run make $goal again"
