# Every target does the set-up it needs (Debian 12 or 13 with Rust) and may be repeated. `make help` lists them.
CARGO  ?= cargo
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
DESTDIR ?=
UNITS := $(PREFIX)/lib/systemd/system
SYSUSERS := $(PREFIX)/lib/sysusers.d
MAN := $(PREFIX)/share/man
BASHDIR := $(PREFIX)/share/bash-completion/completions
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARIES := bulkheadd bulkhead containerd-shim-bulkhead-v2 bulkhead-vmm
PACKAGES := -p bulkhead-engine -p bulkhead-shim -p bulkhead-cli -p bulkhead-vmm

.PHONY: help demo test build boot bench bench-kvm conformance lab lab-test lab-bench fuzz-smoke lint arch install uninstall deb deb-check machine-check setup-deb setup-build setup-run setup-test \
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

bench-kvm: build setup-bench   ## our own VMM beside QEMU on this machine's KVM: needs hardware virtualization
	$(CARGO) run --release -p bulkhead-bench -- --kvm $(BENCH_ARGS)

conformance: setup-build setup-run setup-test setup-conformance boot   ## the suites of Docker's SDKs, beside dockerd
	$(CARGO) xtask conformance $(CONFORMANCE_ARGS)

lab: setup-build setup-run setup-lab boot   ## a shell on an emulated machine with KVM and cgroup version 2
	$(CARGO) xtask lab

lab-test: setup-build setup-run setup-lab boot   ## the tests that need such a machine, in it
	$(CARGO) xtask lab --test $(LAB_ARGS)

lab-bench: setup-build setup-run setup-lab boot   ## the same as bench-kvm on an emulated machine: only ratios mean anything
	$(CARGO) xtask lab --bench

fuzz-smoke: setup-build   ## a minute of libFuzzer for everything in our own VMM that reads what a guest says
	scripts/fuzz $(or $(FUZZ_SECONDS),60)

deb: build setup-deb   ## target/deb/bulkhead_VERSION_ARCH.deb
	scripts/deb

deb-check: deb         ## installs, removes and purges that package in a fresh Debian root (as root)
	scripts/deb-check

machine-check: deb     ## that package on a whole machine with systemd and cgroup version 2, over a reboot (as root, emulated)
	scripts/machine-check

lint: setup-build      ## formatting, clippy, architecture
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) xtask arch

arch:                  ## the architecture checks only
	$(CARGO) xtask arch

# The binaries find the guest image at ../lib/bulkhead beside their own folder. Completions, manual pages and the example of a
# configuration are printed by the programs themselves, so they fit them. A configuration that is there stays.
install:               ## what `make build` made, to DESTDIR/PREFIX
	@for f in $(BINARIES:%=$(TARGET)/release/%) $(TARGET)/boot/manifest.json; do \
	  [ -e $$f ] || { echo "$$f is missing: run make build first" >&2; exit 1; }; done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/bulkhead $(DESTDIR)$(UNITS) $(DESTDIR)$(SYSUSERS) $(DESTDIR)$(MAN)/man1 \
	  $(DESTDIR)$(MAN)/man8 $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR) $(DESTDIR)$(SYSCONFDIR)/bulkhead
	install -m 755 $(BINARIES:%=$(TARGET)/release/%) $(DESTDIR)$(PREFIX)/bin/
	ln -sf containerd-shim-bulkhead-v2 $(DESTDIR)$(PREFIX)/bin/containerd-shim-bulkhead-hyperv-v2
	install -m 644 $(TARGET)/boot/vmlinux $(TARGET)/boot/initramfs.cpio $(TARGET)/boot/manifest.json $(DESTDIR)$(PREFIX)/lib/bulkhead/
	sed 's|@BINDIR@|$(PREFIX)/bin|' packaging/bulkhead.service.in > $(DESTDIR)$(UNITS)/bulkhead.service
	install -m 644 packaging/bulkhead.socket $(DESTDIR)$(UNITS)/
	install -m 644 packaging/bulkhead.sysusers $(DESTDIR)$(SYSUSERS)/bulkhead.conf
	$(TARGET)/release/bulkheadd --config /dev/null --print man > $(DESTDIR)$(MAN)/man8/bulkheadd.8
	$(TARGET)/release/bulkhead man $(DESTDIR)$(MAN)/man1
	$(TARGET)/release/bulkhead completion bash > $(DESTDIR)$(BASHDIR)/bulkhead
	$(TARGET)/release/bulkhead completion zsh > $(DESTDIR)$(ZSHDIR)/_bulkhead
	$(TARGET)/release/bulkhead completion fish > $(DESTDIR)$(FISHDIR)/bulkhead.fish
	[ -e $(DESTDIR)$(SYSCONFDIR)/bulkhead/bulkheadd.toml ] || \
	  $(TARGET)/release/bulkheadd --config /dev/null --print config > $(DESTDIR)$(SYSCONFDIR)/bulkhead/bulkheadd.toml

uninstall:             ## takes away what install put there, but for the configuration
	rm -f $(BINARIES:%=$(DESTDIR)$(PREFIX)/bin/%) $(DESTDIR)$(PREFIX)/bin/containerd-shim-bulkhead-hyperv-v2 $(DESTDIR)$(UNITS)/bulkhead.service $(DESTDIR)$(UNITS)/bulkhead.socket
	rm -f $(DESTDIR)$(SYSUSERS)/bulkhead.conf $(DESTDIR)$(MAN)/man8/bulkheadd.8 $(DESTDIR)$(MAN)/man1/bulkhead.1 $(DESTDIR)$(MAN)/man1/bulkhead-*.1
	rm -f $(DESTDIR)$(BASHDIR)/bulkhead $(DESTDIR)$(ZSHDIR)/_bulkhead $(DESTDIR)$(FISHDIR)/bulkhead.fish
	rm -rf $(DESTDIR)$(PREFIX)/lib/bulkhead

setup-build setup-run setup-deb setup-test setup-bench setup-conformance setup-lab:
	@scripts/setup $(@:setup-%=%)
