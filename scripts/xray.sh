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

dir=$local_dir/xray/$xray_version
if [[ ! -x $dir/xray ]]; then
  say "building Xray $xray_version in .local (once, about a minute)"
  mkdir -p "$dir"
  work=$(mktemp -d "$dir/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # The versions and hashes of every module are in go.mod and go.sum; readonly refuses any other.
  (cd deploy/xray && CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -trimpath -ldflags '-s -w' \
    -o "$work/xray" github.com/xtls/xray-core/main) >&2
  [[ $("$work/xray" version) == "Xray $xray_version "* ]] ||
    die "the Xray that deploy/xray builds is not $xray_version: change xray_version in scripts/lib.sh with it"
  # The final name appears only when the file is whole.
  mv "$work/xray" "$dir/xray"
fi
echo "$dir/xray"
