#!/usr/bin/env bash
# Prints the folder that holds the clients of tests/go: bridge, a panel on grpc-go and net/http, and
# grpcurl. They are built anew when their source has changed. Everything but the path goes to stderr.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

clients=$local_dir/go-clients
if [[ ! -x $clients/grpcurl ]]; then
  say "building the Go clients in .local (once, about a minute)"
fi
mkdir -p "$clients"
# Go's own cache knows what has changed; the versions and hashes of every module are in go.sum.
(cd tests/go && CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -o "$clients/" \
  ./bridge github.com/fullstorydev/grpcurl/cmd/grpcurl) >&2
echo "$clients"
