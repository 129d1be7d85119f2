#!/usr/bin/env bash
# Prints the path of the newest Xray, which is built at the first call (a few minutes).
# Everything but the path goes to stderr.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

dir=$local_dir/xray/$xray_newest_version
if [[ ! -x $dir/xray ]]; then
  need_xray_newest
  python=$(scripts/python.sh)
  say "building Xray $xray_newest_version in .local (once, a few minutes)"
  mkdir -p "$dir"
  work=$(mktemp -d "$dir/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # pip compares the hash before it unpacks the archive or runs anything from it.
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --requirement tests/newest-core/requirements.txt --dest "$work" >&2
  mkdir "$work/source"
  tar -xzf "$work"/xray_core-*.tar.gz -C "$work/source" --strip-components=1
  (
    cd "$work/source/xray-go"
    # Two of the modules that it names cannot be had from the module proxy; these are the nearest
    # ones that can. Only REALITY and the built-in root certificates come from them.
    go mod edit \
      -replace github.com/xtls/reality=github.com/xtls/reality@v0.0.0-20260322125925-9234c772ba8f \
      -replace golang.org/x/crypto/x509roots/fallback=golang.org/x/crypto/x509roots/fallback@v0.0.0-20260929172509-b39ff6d641ec
    # It wants a newer Go than the rest of the project; auto lets Go fetch that one.
    # mod=mod lets Go add the hashes of the two replacements, checked against the checksum database.
    GOTOOLCHAIN=auto GOFLAGS='' CGO_ENABLED=0 go build -mod=mod -buildvcs=false -trimpath \
      -ldflags '-s -w -checklinkname=0' -o "$work/xray" ./main
  ) >&2
  [[ $("$work/xray" version) == "Xray $xray_newest_version "* ]] ||
    die "what tests/newest-core pins is not Xray $xray_newest_version: change xray_newest_version in scripts/lib.sh with it"
  # The final name appears only when the file is whole.
  mv "$work/xray" "$dir/xray"
fi
echo "$dir/xray"
