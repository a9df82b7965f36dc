#!/usr/bin/env bash
# The main job in one command: raw web pages to a trained and evaluated model, with a report.
#
#   ./launch/quickstart.sh                                       the Python documentation here
#   ./launch/quickstart.sh --gin.WARC_FILES="crawl/*.warc.gz"    your own pages
#
# Results go below runs/ in the working folder. Running the same command again goes on where the
# last run stopped. All arguments are passed on; --help and --dry_run work too.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_locked requirements.txt

# What the run prints is looked through for the line that names the report, to end with it.
output="$(mktemp)"
trap 'rm -f "$output"' EXIT
PYTHONUNBUFFERED=1 "$VENV_PYTHON" -m t5x_style.run.pipeline \
  --gin_file=recipes/quickstart.gin "$@" | tee "$output"
sed -n 's/^report: /The report is at /p' "$output" | tail -n 1
