#!/usr/bin/env bash
# need.sh TOOL...: says which tool is missing before anything long is started. TOOL is one of
# cargo, go, xray (Go, unless there is an Xray already), xray_oldest and xray_newest (the same for
# those), python, systemd.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

for tool in "$@"; do
  "need_$tool"
done
