# shellcheck shell=bash
# Sourced by the scripts: gives them $root and a ready virtual environment, from nothing but Python 3.11+ and pip.
#
#   setup        .venv      what requirements/dev.txt pins, and onefold itself, editable; puts it first on PATH
#   setup_gen    .venv-gen  the code generator alone, because it needs an older protobuf than the service
#   setup_fuzz   .venv-fuzz the fuzzer and what it reads with, because there are wheels of it for few platforms only
#
# Everything said here goes to standard error: standard output belongs to the script that sources this.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
requirements=$root/scripts/requirements

# Whatever is active around us must decide neither where packages go nor what our Python imports.
unset VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH UV_SYSTEM_PYTHON UV_PYTHON UV_TARGET UV_PREFIX PIP_TARGET PIP_PREFIX PIP_PYTHON
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

# The first Python that runs and is new enough. Running it is the test: a pyenv shim may exist and fail.
_base_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "onefold needs Python 3.11 or newer with its venv module, and found none on PATH." >&2
  return 1
}

# One line that says what ENVIRONMENT should hold, and where. It fails if the environment cannot be used as it is.
_fingerprint() { # ENVIRONMENT FILE...
  "$1/bin/python" -IS -c '
import hashlib, os, sys
environment, *names = sys.argv[1:]
if sys.version_info < (3, 11) or not os.path.isdir("%s/lib/python%d.%d" % (environment, *sys.version_info[:2])):
    sys.exit(1)
digest = hashlib.sha256(sys.version.encode())
for name in names:
    with open(name, "rb") as file:
        digest.update(hashlib.sha256(file.read()).digest())
print(digest.hexdigest(), environment)
' "$@" 2>/dev/null
}

# The base Python's pip, so that the environment need not carry one: that saves seconds, and Debian's Python
# without the ensurepip module works too.
_pip() { # ENVIRONMENT ARGUMENT...
  local environment=$1 base
  shift
  base=$(_base_python)
  if "$base" -m pip --version >/dev/null 2>&1; then
    "$base" -m pip --python "$environment/bin/python" --quiet "$@" >&2
  else
    "$environment/bin/python" -m ensurepip >/dev/null
    "$environment/bin/python" -m pip --quiet "$@" >&2
  fi
}

# Prints how to call uv: the one on PATH, or else our own, fetched into ENVIRONMENT.
_uv() { # ENVIRONMENT
  if uv --version >/dev/null 2>&1; then
    echo uv
    return
  fi
  "$1/bin/uv" --version >/dev/null 2>&1 || _pip "$1" install --require-hashes -r "$requirements/uv.txt" || return
  printf '%s\n' "$1/bin/uv"
}

_install() { # ENVIRONMENT LOCK
  local uv
  uv=$(_uv "$1")
  # pip has the last word, because a mirror may be known to pip's settings alone.
  "$uv" pip install --quiet --python "$1/bin/python" --require-hashes -r "$2" >&2 ||
    _pip "$1" install --require-hashes -r "$2"
}

_create() { # ENVIRONMENT
  local base place=$1
  base=$(_base_python)
  if [ -f "$1/.onefold-stamp" ]; then
    read -r _ place <"$1/.onefold-stamp"
  fi
  # One that was moved here still names its old place in every script; one of another Python holds nothing for this one.
  if [ "$place" != "$1" ] || ! _fingerprint "$1" >/dev/null; then
    rm -rf "$1"
    "$base" -m venv --without-pip "$1"
  fi
}

_is_ready() { # ENVIRONMENT FILE...
  local stamp
  [ -f "$1/.onefold-stamp" ] && read -r stamp <"$1/.onefold-stamp" && [ "$(_fingerprint "$@")" = "$stamp" ]
}

# Makes ENVIRONMENT and calls BUILD on it, unless its stamp says that this was done from the same FILEs.
_ensure() { # ENVIRONMENT BUILD FILE...
  local environment=$1 build=$2 started=$SECONDS
  shift 2
  if _is_ready "$environment" "$@"; then
    return
  fi
  (
    base=$(_base_python)
    # Two at once: the second waits, then finds the work done. Python's flock, because macOS has no flock command.
    "$base" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if _is_ready "$environment" "$@"; then
      exit
    fi
    echo "onefold: setting up ${environment##*/} ..." >&2
    _create "$environment"
    "$build" "$environment"
    _fingerprint "$environment" "$@" >"$environment/.onefold-stamp.new"
    mv "$environment/.onefold-stamp.new" "$environment/.onefold-stamp"
    echo "onefold: ${environment##*/} is ready after $((SECONDS - started)) s" >&2
  ) 9>"$environment.lock"
}

_build_dev() {
  local uv
  _install "$1" "$requirements/dev.txt"
  uv=$(_uv "$1")
  # The build backend is in the lock too, so nothing is fetched here and nothing is unpinned.
  "$uv" pip install --quiet --python "$1/bin/python" --no-deps --no-build-isolation --offline --editable "$root" >&2
}

_build_gen() {
  _install "$1" "$requirements/gen.txt"
}

setup() {
  _ensure "$root/.venv" _build_dev "$requirements/dev.txt" "$root/pyproject.toml"
  export VIRTUAL_ENV=$root/.venv PATH=$root/.venv/bin:$PATH
}

_build_fuzz() {
  _install "$1" "$requirements/fuzz.txt"
}

setup_fuzz() {
  local base
  base=$(_base_python)
  # atheris would have to be built, with clang, anywhere else.
  if ! "$base" -c 'import platform, sys; sys.exit((sys.platform, platform.machine()) != ("linux", "x86_64") or not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo "scripts/fuzz needs atheris, which has wheels for Linux x86-64 and Python 3.11 to 3.13 only; this is $("$base" -VV)." >&2
    return 1
  fi
  _ensure "$root/.venv-fuzz" _build_fuzz "$requirements/fuzz.txt"
}

setup_gen() {
  _ensure "$root/.venv-gen" _build_gen "$requirements/gen.txt"
}
