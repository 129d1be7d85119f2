#!/usr/bin/env bash
# The image, built by the Dockerfile as it is, run by docker-compose.yml as it is: a panel starts it, users' traffic goes
# through it, and it lives through what containers live through. Then with fewer and with more capabilities, in networks
# of their own.
#
# Usage: run.sh XRAY OTHER_XRAY: a user's client, and the core that is installed. Needs an engine for containers, or root
# and dockerd; compose; Python, curl, nsenter. Without an engine it is skipped, and fails where RAYNODE_TEST_DOCKER=1.
# Most of the time is the compilers'. They optimise less than for a release, unless RAYNODE_TEST_RELEASE=1. An image that
# the engine has already is tested by RAYNODE_TEST_IMAGE=its name.
set -euo pipefail
cd "$(dirname "$0")/../.."

xray=$(realpath "$1") other=$(realpath "$2")
work=$(mktemp -d)
project=raynode-test-$$
started=() containers=() compose=()
container=''

skip() {
  echo "SKIPPED, nothing of the image was tested: $*"
  [[ ${RAYNODE_TEST_DOCKER:-} != 1 ]] || exit 1
  exit 0
}

# shellcheck source=tests/docker/engine.sh
source tests/docker/engine.sh
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

finish() {
  local status=$?
  for process in "${started[@]}"; do
    kill "$process" 2>/dev/null || true
  done
  if ((status)); then
    for name in $container "${containers[@]}"; do
      echo "--- what $name said:"
      docker logs --tail 40 "$name" 2>&1 || true
    done
    echo "--- the streams:"
    tail -n 10 "$work/streams.log" 2>/dev/null || true
    echo "--- the engine:"
    tail -n 5 "$work/engine/log" 2>/dev/null || true
  fi
  for name in "${containers[@]}"; do
    docker rm --force --volumes "$name" >/dev/null 2>&1 || true
  done
  if ((${#compose[@]})) && [[ -e $work/node/docker-compose.yml ]]; then
    composed down --volumes --timeout 5 >/dev/null 2>&1 || true
  fi
  if [[ -n $engine ]]; then
    stop_engine
  else
    docker image rm --force "$project" "${made[@]}" >/dev/null 2>&1 || true
  fi
  rm -rf --one-file-system "$work"
}
trap finish EXIT

fail() {
  echo "FAILED: $*"
  exit 1
}

# until_so WHAT COMMAND...: within a minute.
until_so() {
  local what=$1 i
  shift
  for ((i = 0; i < 300; i++)); do
    "$@" && return
    sleep 0.2
  done
  fail "$what"
}

# --- What is known without an engine ---

[[ $(sed -n 's/.*image\.version=\([^ ]*\).*/\1/p' Dockerfile) == "$(cargo_version)" ]] ||
  fail "the label of the image and Cargo.toml have other versions"

if command -v hadolint >/dev/null; then
  hadolint Dockerfile || fail "hadolint"
fi

# --- The image ---

start_engine
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  skip "compose is missing (apt-get install docker-compose)"
fi
build() {
  local began=$SECONDS optimised="as for a release" argument options
  find_image GO_IMAGE
  find_image RUST_IMAGE
  options=(--build-arg GO_IMAGE="$GO_IMAGE" --build-arg RUST_IMAGE="$RUST_IMAGE")
  if [[ ${RAYNODE_TEST_RELEASE:-} != 1 ]]; then
    optimised="less optimised than a release"
    for argument in LTO=off CODEGEN_UNITS=16 OPT_LEVEL=1; do
      options+=(--build-arg "CARGO_PROFILE_RELEASE_$argument")
    done
  fi
  # By its name alone, the value of now.
  for argument in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [[ -z ${!argument:-} ]] || options+=(--build-arg "$argument")
  done
  # The network of the machine: an engine of ours has no other one.
  timeout 1800 docker build --network host --tag "$project" "${options[@]}" . >"$work/build.log" 2>&1 ||
    { tail -n 60 "$work/build.log" && fail "the image can't be built"; }
  echo "ok: the image is built in $((SECONDS - began)) s, $optimised"
}

if [[ -n ${RAYNODE_TEST_IMAGE:-} ]]; then
  docker tag "$RAYNODE_TEST_IMAGE" "$project"
else
  build
fi
size=$(docker image inspect --format '{{.Size}}' "$project")
((size <= 80000000)) || fail "the image has more than 80 MB"

# shellcheck source=tests/docker/node.sh
source tests/docker/node.sh
# shellcheck source=tests/docker/by_compose.sh
source tests/docker/by_compose.sh
# shellcheck source=tests/docker/by_itself.sh
source tests/docker/by_itself.sh
echo "all passed in $SECONDS s, the image has $((size / 1000000)) MB"
