# shellcheck shell=bash
# Sourced by the other scripts: finds a Python, keeps a virtual environment in the checkout, and
# installs into it from the locks, with hashes. What is installed already is skipped.
#
#   PYTHON     the Python to make the environment with (else the first good one on PATH)
#   T5X_VENV   where the environment lies (else .venv in the checkout)

CHECKOUT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="${T5X_VENV:-$CHECKOUT/.venv}"
VENV_PYTHON="$VENV/bin/python"
NEEDED_KB=5000000

# A user's own settings for pip or Python must not reach into the environment.
unset PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

is_supported_python() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

# Prints the first Python that runs, is of a supported version and can make an environment; then
# how: with venv alone, with virtualenv, or with its own pip.
find_python() {
  local candidate method seen=""
  for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
    # A name on PATH may be a shim that does not run, so it is tried and not only looked up.
    is_supported_python "$candidate" || continue
    for method in "venv ensurepip" virtualenv "venv pip"; do
      if "$candidate" -c "import ${method// /, }" >/dev/null 2>&1; then
        printf '%s\n%s\n' "$candidate" "$method"
        return
      fi
    done
    seen="$seen $candidate"
  done
  if [ -n "$seen" ]; then
    local version
    version="$("${seen##* }" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    fail "Found a Python ($seen ) that cannot make a virtual environment. On Debian and Ubuntu:" \
      "    sudo apt-get install python$version-venv" \
      "Without root, python3 -m pip install --user virtualenv does as well."
  fi
  fail "No Python from 3.11 to 3.13 found (tried: ${PYTHON:-} python3.13 python3.12 python3.11" \
    "python3 python). On Debian 12 and Ubuntu 24.04: sudo apt-get install python3 python3-venv" \
    "Another one is chosen with PYTHON=/path/to/python $0"
}

make_environment() {
  if [ -x "$VENV_PYTHON" ] && is_supported_python "$VENV_PYTHON" &&
    "$VENV_PYTHON" -c 'import pip' >/dev/null 2>&1; then
    return
  fi
  local found python method
  found="$(find_python)"
  python="${found%%$'\n'*}"
  method="${found#*$'\n'}"
  echo "Making a virtual environment with $("$python" --version) in $VENV"
  rm -rf "$VENV"
  case "$method" in
    virtualenv) "$python" -m virtualenv --quiet "$VENV" ;;
    "venv pip")
      # Debian without python3-venv: its pip can install another pip into the bare environment.
      "$python" -m venv --without-pip "$VENV"
      "$python" -m pip --quiet --python "$VENV_PYTHON" install pip
      ;;
    *) "$python" -m venv "$VENV" ;;
  esac
}

pip_install() {
  # Bytecode is made as modules are imported, which is less work than compiling all of them.
  "$VENV_PYTHON" -m pip install --no-compile "$@"
}

# install_locked LOCK: brings the environment to LOCK (and the locks that it names) and makes the
# package importable from the checkout.
install_locked() {
  local lock="$1" stamp wanted free_kb
  stamp="$VENV/.installed-$lock"
  wanted="$(cat "$CHECKOUT"/requirements*.txt "$CHECKOUT/setup.py" | sha256sum) $CHECKOUT"
  make_environment
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    return
  fi
  free_kb="$(df -Pk "$VENV" | awk 'NR == 2 { print $4 }')"
  if [ "$free_kb" -lt "$NEEDED_KB" ] && [ ! -f "$stamp" ]; then
    fail "Only $((free_kb / 1000)) MB are free in $VENV; $((NEEDED_KB / 1000)) MB are needed." \
      "Another place is chosen with T5X_VENV=/path/to/environment $0"
  fi
  echo "Installing $lock into $VENV (a few minutes the first time)"
  # The locks are complete, so pip need not look for dependencies.
  pip_install --quiet --no-deps --require-hashes -r "$CHECKOUT/requirements-build.txt"
  pip_install --quiet --no-deps --require-hashes --no-build-isolation -r "$CHECKOUT/$lock"
  if [ "$lock" != requirements-core.txt ] &&
    ! "$VENV_PYTHON" -c 'import editdistance' >/dev/null 2>&1; then
    # seqio wants it, and for Python 3.13 there is no wheel.
    pip_install --quiet --no-deps --no-build-isolation "$CHECKOUT/launch/editdistance"
  fi
  pip_install --quiet --no-deps --no-build-isolation -e "$CHECKOUT"
  # The larger set holds the smaller one.
  if [ "$lock" = requirements-test.txt ]; then
    printf '%s' "$wanted" >"$VENV/.installed-requirements.txt"
  fi
  printf '%s' "$wanted" >"$stamp"
}
