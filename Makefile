# podvisor: what a developer or CI types. `make help` lists the targets.

CARGO      ?= cargo
GUEST_OUT  ?= $(CURDIR)/target/guest
NESTED_OUT ?= $(CURDIR)/target/nested
DEBIAN_OUT ?= $(CURDIR)/target/debian
PODVISOR   ?= $(CURDIR)/target/podvisor
TARGET     ?= $(shell examples/target.sh)
export GUEST_OUT NESTED_OUT DEBIAN_OUT PODVISOR

.PHONY: help deps build image guest nested debian demo demo-pod demo-cloud emulated-cloud bench bench-build bench-ab bench-unrestricted bench-micro test check check-arm64 fmt clippy doc repo unit vm-tests miri soak clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

deps: ## Install the Debian packages that guest, demo and tests need (root)
	examples/deps.sh

# The binary is the whole container image, so libc is linked in. Its relocations are packed, and as few as can be
# (`pie`: functions of this program are called, not looked up): each page that a start reads or writes is paid for,
# by each machine. Naming the target keeps that away from procedural macros, which cannot be static.
STATIC = CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)_RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=pie \
	-C link-arg=-Wl,-z,pack-relative-relocs"

build: ## Build the static release binary: target/podvisor
	$(STATIC) $(CARGO) build --release --locked -p podvisor --target $(TARGET)
	cp target/$(TARGET)/release/podvisor target/podvisor

image: build ## Build the container image: target/image (OCI layout, bill of materials, checksums)
	TARGET=$(TARGET) deploy/image.sh

guest: deps ## Build the test guest: Linux kernel, initrd, bare-metal payload (cached)
	tests/guest/build.sh
	tests/payload/build.sh

nested: deps ## Fetch Debian's stock kernels, guests and host of the emulated machine (cached)
	tests/nested/build.sh

debian: deps ## Make disks with a whole Debian 12 and 13 of their packages: target/debian/{bookworm,trixie}.img (cached)
	tests/debian/build.sh bookworm
	tests/debian/build.sh trixie

demo: deps build guest ## Boot a Linux VM from a VMI with disk and network, in a pod-like namespace
	examples/demo.sh

demo-pod: deps build guest ## The same with podvisor as the entrypoint of a real container (podman)
	examples/demo-pod.sh

demo-cloud: build debian ## Boot that Debian, where KVM has hardware virtualization, log in and customize it (SUITE=trixie: Debian 13)
	examples/demo-cloud.sh $(SUITE)

emulated-cloud: build debian nested ## The same in an emulated machine that has hardware virtualization: a quarter of an hour
	NESTED_SECS=2400 NESTED_MEMORY=2048 tests/nested/run.sh \
		"cd '$(CURDIR)'; PODVISOR='$(PODVISOR)' DEBIAN_OUT='$(DEBIAN_OUT)' examples/demo-cloud.sh $(SUITE)"

test: deps check unit vm-tests ## All checks and tests

check: fmt clippy doc repo check-arm64 ## Format, lints, links in docs, licences, that each promise has its test and 64-bit Arm compiles

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) check -p podvisor-benches --locked # without what is there for tests alone

doc: ## The code's documentation, whose links must lead somewhere
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --workspace --document-private-items --locked

# What the machine has on Arm is checked, not yet linked or run.
check-arm64: ## Check the product for 64-bit Arm
	rustup target add aarch64-unknown-linux-musl
	$(CARGO) check --locked --target aarch64-unknown-linux-musl -p podvisor

repo: ## What deny.toml says of dependencies, and the tests that documents name
	tests/repo/dependencies.sh
	tests/repo/promises.sh

unit: ## Unit tests and tests without a VM
	$(CARGO) test --workspace --exclude podvisor-tests --locked --no-fail-fast

vm-tests: build guest nested ## Whole-VM tests through the binary
	$(CARGO) test -p podvisor-tests --locked -- --test-threads=2

# What has unsafe blocks and makes no system call, without the tests that go through all indexes of a ring or tables of all
# sizes: they would take hours.
MIRI_SKIPS = indirect_tables_have an_event_is_passed gives_chains_in_order each_index_has
miri: ## Run how chains and rings are read under Miri (a nightly compiler with miri and rust-src)
	PROPTEST_CASES=2 MIRIFLAGS="-Zmiri-permissive-provenance -Zmiri-disable-isolation" CARGO_TARGET_DIR=target/miri \
		$(CARGO) +nightly miri test --locked -p podvisor-devices --lib -- \
		virtio::chain virtio::queue::tests virtio::split_ring $(MIRI_SKIPS:%=--skip %)

soak: build guest ## Half a day: losses of power, kills, 1000 disks that come and go, two hostile guests for an hour each, fuzzing
	SOAK_LIVES=200 $(CARGO) test -p podvisor-devices --locked no_loss_of_power -- --nocapture
	HOTPLUG_ROUNDS=1000 $(CARGO) test -p podvisor-tests --locked --test vm ports_balloon_and_disks_that_come_and_go -- --nocapture
	POWER_ROUNDS=200 $(CARGO) test -p podvisor-tests --locked --test vm a_loss_of_power -- --nocapture
	KILL_ROUNDS=200 $(CARGO) test -p podvisor-tests --locked --test vm kills_at_random_points -- --nocapture
	HOSTILE_SECS=3600 $(CARGO) test -p podvisor-tests --locked --test vm a_hostile_driver -- --nocapture
	tests/fuzz/run.sh 1800

# Linked as the product is, so that the bare program starts no slower than it.
bench-build: build guest
	$(STATIC) $(CARGO) build --release --locked -p podvisor-benches --target $(TARGET)

bench: bench-build ## Measure beside the peers: benches/results (BENCH= options; FIRECRACKER=, CLOUD_HYPERVISOR= binaries)
	target/$(TARGET)/release/bench run $(BENCH)

bench-micro: ## Time the queue, chain and request paths without a VM
	$(CARGO) bench --locked -p podvisor-benches

# For benches/jail-cost.sh: a binary that restricts nothing, with a feature that no release has.
bench-unrestricted:
	$(STATIC) $(CARGO) build --release --locked -p podvisor --features bench-unrestricted --target $(TARGET) \
		--target-dir target/unrestricted

bench-ab: bench-build ## Compare with another revision: BASE=rev (AB= options, such as --cases start --rounds 30)
	test -n "$(BASE)"
	test -e target/bench-base || git worktree add --detach target/bench-base $(BASE)
	git -C target/bench-base checkout --quiet --detach $(shell git rev-parse --verify '$(BASE)^{commit}')
	$(MAKE) -C target/bench-base build
	target/$(TARGET)/release/bench compare --base target/bench-base/target/podvisor --head $(PODVISOR) $(AB)

clean: ## Remove everything built, the guest too
	$(CARGO) clean
