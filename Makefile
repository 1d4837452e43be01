# Every target does the set-up it needs (Debian 12 or 13 with Rust) and may be repeated. `make help` lists them.
CARGO  ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARIES := bulkheadd bulkhead containerd-shim-bulkhead-v2
PACKAGES := -p bulkhead-engine -p bulkhead-shim -p bulkhead-cli

.PHONY: help demo test build boot bench conformance lab lab-test lint arch install uninstall setup-build setup-run setup-test \
        setup-bench setup-conformance setup-lab

help:                  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: build            ## one image behind both walls on a temporary engine, with a table of times
	scripts/demo

test: setup-build setup-run setup-test boot   ## unit, contract and e2e tests
	$(CARGO) xtask test --failpoints

build: setup-build boot   ## release binaries in target/release, guest image in target/boot
	$(CARGO) build --release $(PACKAGES)

boot: setup-build setup-run   ## the guest image only
	$(CARGO) xtask boot

bench: build setup-bench   ## beside Docker and runc on this machine; prints ratios
	$(CARGO) run --release -p bulkhead-bench -- $(BENCH_ARGS)

conformance: setup-build setup-run setup-test setup-conformance boot   ## the suites of Docker's SDKs, beside dockerd
	$(CARGO) xtask conformance $(CONFORMANCE_ARGS)

lab: setup-build setup-run setup-lab boot   ## a shell on an emulated machine with KVM and cgroup version 2
	$(CARGO) xtask lab

lab-test: setup-build setup-run setup-lab boot   ## the tests that need such a machine, in it
	$(CARGO) xtask lab --test $(LAB_ARGS)

lint: setup-build      ## formatting, clippy, architecture
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) xtask arch

arch:                  ## the architecture checks only
	$(CARGO) xtask arch

# The binaries find the guest image at ../lib/bulkhead beside their own folder.
install:               ## what `make build` made, to DESTDIR/PREFIX
	@for f in $(BINARIES:%=$(TARGET)/release/%) $(TARGET)/boot/manifest.json; do \
	  [ -e $$f ] || { echo "$$f is missing: run make build first" >&2; exit 1; }; done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/bulkhead
	install -m 755 $(BINARIES:%=$(TARGET)/release/%) $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(TARGET)/boot/vmlinux $(TARGET)/boot/initramfs.cpio $(TARGET)/boot/manifest.json $(DESTDIR)$(PREFIX)/lib/bulkhead/

uninstall:             ## takes away what install put there
	rm -f $(BINARIES:%=$(DESTDIR)$(PREFIX)/bin/%)
	rm -rf $(DESTDIR)$(PREFIX)/lib/bulkhead

setup-build setup-run setup-test setup-bench setup-conformance setup-lab:
	@scripts/setup $(@:setup-%=%)
