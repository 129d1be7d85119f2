# Everything that a developer runs. What is long is in scripts/; all that is built beside cargo's
# target/ is in .local/. XRAY_EXECUTABLE_PATH=/path/to/xray saves building a core.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build xray xray-oldest xray-newest run demo test test-oldest-core test-newest-core test-systemd test-install test-packages test-docker release soak bench check fmt-check clippy doc clean-local

# More arguments for cargo test: make test ARGS="stats -- --nocapture"
ARGS ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the daemon: target/release/raynode
	@scripts/need.sh cargo
	cargo build --release

xray: ## Build the core (Xray 26.3.27) in .local, unless XRAY_EXECUTABLE_PATH is set
	@scripts/xray.sh

xray-oldest: ## Build the oldest core that is tested (Xray 25.6.8) in .local
	@scripts/xray-oldest.sh

xray-newest: ## Build the newest core (Xray 26.10.10) in .local
	@scripts/xray-newest.sh

run: ## Build all and run a node here; prints what to enter in the panel
	@scripts/run.sh

demo: ## Play a panel against a node and a real core, and show what happens
	@scripts/need.sh cargo xray
	cargo build --release
	@xray=$$(scripts/xray.sh) && XRAY_EXECUTABLE_PATH=$$xray exec cargo run --release --example demo

test: ## Run all tests against a real core and every generation of the panel's own client library
	@scripts/need.sh cargo xray python go
	@xray=$$(scripts/xray.sh) && python=$$(scripts/python.sh) && clients=$$(scripts/old-clients.sh) && go=$$(scripts/go-clients.sh) && \
	  XRAY_EXECUTABLE_PATH=$$xray RAYNODE_TEST_PYTHON=$$python RAYNODE_TEST_OLD_CLIENTS=$$clients \
	  RAYNODE_TEST_GO_CLIENTS=$$go exec cargo test $(ARGS)

# What is the same whichever core there is runs against one of them.
NOT_OF_THE_CORE := $(foreach module,capabilities door hostile doctor installing journal mutated notified one_order refusals replacing session signals,--skip $(module)::)

# That core answers a client whom it refuses only after a second, so those who are refused all the time
# would take minutes: the old clients are played against the other two, and so are the long hand-overs.
test-oldest-core: ## Run the integration tests, but the old clients and long hand-overs, against the oldest core
	@scripts/need.sh cargo xray_oldest python go
	@xray=$$(scripts/xray-oldest.sh) && python=$$(scripts/python.sh) && go=$$(scripts/go-clients.sh) && \
	  XRAY_EXECUTABLE_PATH=$$xray RAYNODE_TEST_PYTHON=$$python \
	  RAYNODE_TEST_GO_CLIENTS=$$go exec cargo test --test it $(ARGS) -- $(NOT_OF_THE_CORE) --skip every_client:: \
	  --skip handover::unnoticed --skip handover::dying --skip handover::parts

test-newest-core: ## Run the integration tests against the newest core
	@scripts/need.sh cargo xray xray_newest python go
	@xray=$$(scripts/xray-newest.sh) && other=$$(scripts/xray.sh) && python=$$(scripts/python.sh) && clients=$$(scripts/old-clients.sh) && go=$$(scripts/go-clients.sh) && \
	  XRAY_EXECUTABLE_PATH=$$xray RAYNODE_TEST_PYTHON=$$python RAYNODE_TEST_OLD_CLIENTS=$$clients \
	  RAYNODE_TEST_GO_CLIENTS=$$go RAYNODE_TEST_OTHER_XRAY=$$other exec cargo test --test it $(ARGS) -- $(NOT_OF_THE_CORE)

test-systemd: ## Run the daemon under a real systemd in a throw-away tree (root, mmdebstrap, systemd-nspawn)
	@scripts/need.sh cargo xray python systemd
	cargo build
	@xray=$$(scripts/xray.sh) && tests/systemd/run.sh target/debug/raynode $$xray

test-install: ## Run install.sh below scratch roots, against a file server that stands for the release host
	@scripts/need.sh cargo xray
	cargo build
	@xray=$$(scripts/xray.sh) && tests/install/run.sh target/debug/raynode $$xray

test-packages: ## Run install.sh and the Debian package under a real systemd in a throw-away tree (root, mmdebstrap, systemd-nspawn)
	@scripts/need.sh cargo xray systemd
	cargo build
	@xray=$$(scripts/xray.sh) && tests/install/systemd.sh target/debug/raynode $$xray && \
	  tests/install/deb.sh target/debug/raynode $$xray

test-docker: ## Build the image and run it by docker-compose.yml, with an engine of its own where none runs (root, dockerd, compose)
	@scripts/need.sh xray xray_newest
	@xray=$$(scripts/xray.sh) && other=$$(scripts/xray-newest.sh) && tests/docker/run.sh $$xray $$other

release: ## Build the archive and the Debian package of this machine's kind, with SHA256SUMS, in target/dist
	@scripts/need.sh cargo
	@scripts/release.sh $$(dpkg --print-architecture) && scripts/deb.sh $$(dpkg --print-architecture)

soak: ## The long form of what cuts nobody and loses nothing: kills, reconnects, hangs, cut replies (about an hour)
	@scripts/need.sh cargo xray python
	@xray=$$(scripts/xray.sh) && python=$$(scripts/python.sh) && \
	  XRAY_EXECUTABLE_PATH=$$xray RAYNODE_TEST_PYTHON=$$python RAYNODE_SOAK=1 \
	  exec cargo test --test it -- --include-ignored --nocapture --test-threads 1 \
	  living_on found going_back notified replacing signals lingering one_order mutated counted delivered handover

bench: ## Measure start time, memory and speed of the release build
	@scripts/need.sh cargo xray
	@# With its own profile, cargo bench would put another raynode in the place of the release build.
	@xray=$$(scripts/xray.sh) && \
	  XRAY_EXECUTABLE_PATH=$$xray exec cargo bench --profile release --bench node --bench usage

check: fmt-check clippy doc ## Formatting, lints and documentation, each without a warning

fmt-check:
	@scripts/need.sh cargo
	cargo fmt --check

clippy:
	cargo clippy --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

clean-local: ## Remove .local: the built cores, the Python environments, the state of make run
	rm -rf .local
