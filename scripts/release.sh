#!/usr/bin/env bash
# release.sh [--fast] [--version V] [--out DIR] amd64|arm64 [BINARY]: raynode-V-linux-ARCH.tar.gz and its line in
# SHA256SUMS, in target/dist. Without a binary the static one is built. --fast compresses less. The same
# commit and binary give the same file to the byte.
set -euo pipefail

here=$PWD
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

version=$(cargo_version) out=target/dist level=--best
while (($#)); do
  case $1 in
  --version) version=$2 && shift ;;
  --out) out=$(cd "$here" && realpath -m "$2") && shift ;;
  --fast) level=--fast ;;
  -*) die "unknown: $1" ;;
  *) break ;;
  esac
  shift
done
(($# == 1 || $# == 2)) || die "usage: release.sh [--fast] [--version V] [--out DIR] amd64|arm64 [BINARY]"
arch=$1
release_triple "$arch" >/dev/null
if (($# == 2)); then
  binary=$(cd "$here" && realpath "$2")
else
  need_cargo
  binary=$(build_static "$arch")
fi
need_made_for "$arch" "$binary"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name=raynode-$version-linux-$arch
mkdir -p "$out" "$work/$name"
install -m 0755 "$binary" "$work/$name/raynode"
install -m 0644 deploy/systemd/raynode.service .env.example LICENSE-MIT LICENSE-APACHE "$work/$name/"
# What README.md and its pages link to, in its place.
install -m 0644 README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md "$work/$name/"
while IFS= read -r page; do
  install -D -m 0644 "$page" "$work/$name/$page"
done < <(
  find docs -name '*.md'
  find proto/service.proto proto/raynode -name '*.proto'
  printf '%s\n' deploy/systemd/raynode.service deploy/prometheus/raynode.rules.yml deploy/xray/go.{mod,sum}
)
find "$work/$name" -type d -exec chmod 0755 {} +
tar -C "$work" --create --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$(release_time)" \
  "$name" | gzip --no-name "$level" >"$work/archive"
install -m 0644 "$work/archive" "$out/$name.tar.gz"
add_sum "$out" "$name.tar.gz"
echo "$out/$name.tar.gz"
