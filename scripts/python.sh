#!/usr/bin/env bash
# Prints the path of the Python that the tests use: a virtual environment in .local that holds the
# panel's own client library. Everything but the path goes to stderr.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

requirements=tests/python/requirements.txt
venv=$local_dir/venv
# A copy of the requirements is put into the environment as the last step. So one that is half made,
# was made from other requirements, or whose Python has gone since is made anew.
if ! cmp -s "$requirements" "$venv/requirements.txt" || ! "$venv/bin/python" -c '' 2>/dev/null; then
  base=$(find_python) || need_python
  say "installing the panel's client library into .local/venv (once, a few seconds)"
  mkdir -p "$local_dir"
  "$base" -m venv --clear "$venv" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --only-binary :all: --requirement "$requirements" >&2
  cp "$requirements" "$venv/requirements.txt"
fi
echo "$venv/bin/python"
