#!/usr/bin/env bash
# Prints the path of the oldest Xray that the tests run against, which is built at the first call
# (about a minute). Everything but the path goes to stderr.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

need_xray_oldest
build_xray "$xray_oldest_version" tests/oldest-core
