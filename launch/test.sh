#!/usr/bin/env bash
# Installs what is missing and runs linter, type checker and tests.
#
#   ./launch/test.sh                  everything: before a push
#   ./launch/test.sh --fast           without the tests marked slow: before a commit
#   ./launch/test.sh tests/unit -k x  all checks; further arguments go to pytest
#
# The cheapest runs first. Everything runs even if an earlier check fails; the exit code is 0 only if
# all passed. On a machine that measures slow, campaigns of kills strike less often, which is printed.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

pytest_arguments=()
if [ "${1:-}" = "--fast" ]; then
  shift
  pytest_arguments+=(-m "not slow")
fi

install_locked requirements-test.txt
cd "$CHECKOUT"

failed=()
check() {
  local name="$1"
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

# node comes from PyPI with pyright; a newer pyright is not asked for.
export PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1
check "pip check" "$VENV_PYTHON" -m pip check
check "ruff check" "$VENV_PYTHON" -m ruff check .
check "ruff format" "$VENV_PYTHON" -m ruff format --check .
check "pyright" "$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
check "pytest" "$VENV_PYTHON" -m pytest -q -n "$(nproc)" \
  ${pytest_arguments[@]+"${pytest_arguments[@]}"} "$@"

if [ "${#failed[@]}" -gt 0 ]; then
  fail "failed: ${failed[*]}"
fi
