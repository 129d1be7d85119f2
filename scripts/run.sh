#!/usr/bin/env bash
# Builds the daemon and the core and runs them here, with all state in .local/node.
# What the environment or ./.env (which the daemon reads itself) sets is left as it is.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

in_env_file() {
  [[ -f .env ]] && grep -Eq "^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=" .env
}

# default NAME VALUE: only where the user has said nothing, because the environment wins over ./.env.
default() {
  if [[ -z ${!1:-} ]] && ! in_env_file "$1"; then
    export "$1=$2"
  fi
}

need_cargo
in_env_file XRAY_EXECUTABLE_PATH || need_xray

cargo build --release

in_env_file XRAY_EXECUTABLE_PATH || XRAY_EXECUTABLE_PATH=$(scripts/xray.sh)
[[ -z ${XRAY_EXECUTABLE_PATH:-} ]] || export XRAY_EXECUTABLE_PATH
default STATE_DIR "$local_dir/node/state"
# A unix socket below it has to fit into 107 bytes, so the daemon takes no longer path than this.
runtime_dir=$local_dir/node/run
((${#runtime_dir} <= 67)) || runtime_dir=${XDG_RUNTIME_DIR:-/tmp}/raynode-$UID
default RUNTIME_DIR "$runtime_dir"

exec "${CARGO_TARGET_DIR:-target}/release/raynode" run --show-pairing
