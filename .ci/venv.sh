#!/bin/sh
# Makes .venv with the project installed editable, from pinned versions. Does nothing when that is done.
# PYTHON=path names the interpreter for a new .venv. TF=2.15 or 2.21 names the pair of versions (docs/VERSIONS.md) instead
# of leaving it to Python's version. GPU=0 or 1 overrides looking for a GPU with nvidia-smi.
set -eu
cd "$(dirname "$0")/.."

say() { echo "make venv: $*" >&2; }
fail() { say "$@"; exit 1; }

case "${GPU:-}" in
  "") if nvidia-smi -L >/dev/null 2>&1; then extras=test,and-cuda; else extras=test; fi ;;
  0) extras=test ;;
  1) extras=test,and-cuda ;;
  *) fail "GPU=$GPU: use 0 or 1." ;;
esac
# The minor versions of Python that will do, the preferred ones first.
[ -n "${TF:-}" ] || [ "$(uname -sm)" != "Linux aarch64" ] || TF=2.21
case "${TF:-}" in
  "") ranges="9-11 12-13" uv_range=">=3.9,<3.12" known="3.9 to 3.13" ;;
  2.15) ranges="9-11" uv_range=">=3.9,<3.12" known="3.9, 3.10 or 3.11" ;;
  2.21) ranges="10-13" uv_range=">=3.10,<3.14" known="3.10 to 3.13" ;;
  *) fail "TF=$TF: use 2.15 or 2.21." ;;
esac
[ "$(uname -sm) ${TF:-}" != "Linux aarch64 2.15" ] ||
  fail "TensorFlow Addons, which goes with TF=2.15, has no wheels for Linux on Arm: use TF=2.21 there."

# A .venv that was moved, interrupted or made from other pins does not carry this line. Without TF any pair will do.
pins=$(cat setup.py constraints*.txt | cksum)
stamp=.venv/made-from
is_made() {
  case "$(cat $stamp 2>/dev/null)" in
    "$PWD $pins TF="${TF:-*}" $extras"*) .venv/bin/python -c "" 2>/dev/null ;; # one made with CUDA does without it too
    *) return 1 ;;
  esac
}

is_made && exit 0
# One at a time; whoever waited finds it done.
if command -v flock >/dev/null; then exec 9<>setup.py; flock 9; fi
is_made && exit 0

# Run, not only found: a pyenv shim can stand for a version that is not there, and Debian's Python may lack ensurepip.
# The base interpreter, since python3 may be the .venv that is about to be replaced.
base_of() {
  "$1" -c "
import ensurepip, sys, venv
if not ${2%-*} <= sys.version_info[1] <= ${2#*-}: sys.exit(1)
print(sys._base_executable)" 2>/dev/null
}
find_python() {
  pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
  for range in $ranges; do
    for python in ${PYTHON:-python3 python python3.11 python3.10 python3.9 python3.12 python3.13 \
      "$pyenv"/3.11*/bin/python "$pyenv"/3.*/bin/python}; do
      base_of "$python" "$range" && return
    done
  done
}

python=$(find_python) || true
if [ -n "$python" ]; then
  say "1 of 3: making .venv with $("$python" --version)."
  rm -rf .venv
  "$python" -m venv .venv
elif [ -n "${PYTHON:-}" ]; then
  fail "PYTHON=$PYTHON does not run as Python $known with venv and ensurepip."
elif uv --version >/dev/null 2>&1 && say "1 of 3: making .venv with a Python of uv's, downloaded if need be." &&
  rm -rf .venv && uv venv --seed --python "$uv_range" .venv; then
  :
else
  fail "neither Python $known with venv and ensurepip was found, nor a working uv:" \
    "install one (on Debian and Ubuntu: apt-get install python3-venv) and call make again."
fi
# setup.py reads TF too.
export TF="${TF:-$(.venv/bin/python -c "import sys; print('2.15' if sys.version_info < (3, 12) else '2.21')")}"
[ "$TF" = 2.15 ] && constraints=constraints.txt || constraints=constraints-$TF.txt

# On a terminal pip shows its own progress; in a log its lines would bury the others.
[ -t 1 ] && quiet="" || quiet=--quiet
install() { .venv/bin/python -m pip install $quiet --disable-pip-version-check --constraint $constraints "$@"; }
say "2 of 3: installing setuptools and wheel."
install setuptools wheel # pinned, so that building the project itself fetches nothing more
case $extras in
  *cuda*) say "3 of 3: downloading and installing TensorFlow $TF with CUDA, more than 2 GB: some minutes." ;;
  *) say "3 of 3: downloading and installing TensorFlow $TF, about 500 MB: a minute or more." ;;
esac
install --no-build-isolation --editable ".[$extras]"
echo "$PWD $pins TF=$TF $extras" >$stamp
say "done."
