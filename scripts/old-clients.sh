#!/usr/bin/env bash
# Prints the folder that holds a Python environment for each published client in tests/python/old,
# named after its package and version. Everything but the path goes to stderr.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

clients=$local_dir/old-clients
python=
for requirements in tests/python/old/*.txt; do
  name=$(basename "$requirements" .txt)
  venv=$clients/$name
  # As in python.sh: the copy is the last step, so an environment that is half made is made anew.
  if cmp -s "$requirements" "$venv/requirements.txt" && "$venv/bin/python" -c '' 2>/dev/null; then
    continue
  fi
  [[ -n $python ]] || python=$(scripts/python.sh)
  say "installing $name into .local/old-clients (once, a few seconds)"
  mkdir -p "$clients"
  # One pip serves them all: a copy in each would take longer than the client itself.
  "$python" -m venv --clear --without-pip "$venv" >&2
  "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check \
    --only-binary :all: --requirement "$requirements" >&2
  cp "$requirements" "$venv/requirements.txt"
done
echo "$clients"
