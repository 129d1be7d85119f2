#!/usr/bin/env bash
# Prints the path of the Xray to use: the one that XRAY_EXECUTABLE_PATH names, else our own, which
# is built at the first call (about a minute). Everything but the path goes to stderr.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

need_xray
if [[ -n ${XRAY_EXECUTABLE_PATH:-} ]]; then
  # It may be a bare name or relative, and the caller may run it from another directory.
  realpath -s -- "$(type -P -- "$XRAY_EXECUTABLE_PATH")"
  exit
fi

build_xray "$xray_version" deploy/xray
