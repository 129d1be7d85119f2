#!/bin/sh
# target.sh amd64|arm64: makes ready what the daemon is built with for such a machine, as a static binary, and prints
# cargo's settings for it. Runs in the Dockerfile, on either kind of machine.
set -eu

case $1 in
amd64) triple=x86_64-unknown-linux-musl compiler=x86_64-linux-gnu-gcc package=gcc-x86-64-linux-gnu ;;
arm64) triple=aarch64-unknown-linux-musl compiler=aarch64-linux-gnu-gcc package=gcc-aarch64-linux-gnu ;;
*)
  echo "the image is for amd64 and arm64, and not for: $1" >&2
  exit 1
  ;;
esac

# On a machine of the same kind the usual compiler has this name, too.
if ! command -v $compiler >/dev/null; then
  apt-get update >&2
  apt-get install -y --no-install-recommends $package "libc6-dev-$1-cross" >&2
  rm -rf /var/lib/apt/lists/*
fi
rustup target add $triple >&2

# Some of what is built is C. What glibc's headers would add to it, musl has not.
underscored=$(echo $triple | tr - _)
cat <<SETTINGS
[build]
target = "$triple"
[target.$triple]
linker = "$compiler"
[env]
CC_$underscored = "$compiler"
CFLAGS_$underscored = "-U_FORTIFY_SOURCE"
SETTINGS
