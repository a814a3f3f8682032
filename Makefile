# What a person and CI call. `make` alone lists it.

# Test programs and the product's are built once, with the same profile.
CARGO ?= cargo
HAS_NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)
HAS_DENY := $(shell $(CARGO) deny --version >/dev/null 2>&1 && echo yes)

.PHONY: help demo test unit e2e check bench prepare prepare-pg17

help:
	@echo "make demo      move a busy 500 MB database between two throw-away servers, and prove it"
	@echo "make test      unit tests, then tests with real servers (PostgreSQL 15, and 17 as root)"
	@echo "make unit      the tests that need no server"
	@echo "make e2e       the end-to-end tests alone, with those that take minutes"
	@echo "make check     format, lints, documentation, file sizes, architecture, licences"
	@echo "make bench     benchmarks"
	@echo "make prepare   install missing Debian packages"

# Installs what is missing and says so. Root, or sudo.
prepare:
	@.ci/prepare

# PostgreSQL 17 for the tests: a Debian trixie under /var/cache/skein-test. Where it cannot be
# made, its tests say that they are skipped.
prepare-pg17:
	@loadtest/prepare-pg17 || [ $$? = 3 ]

demo: prepare
	$(CARGO) build --release --quiet --bins
	target/release/skein-loadtest demo

test: prepare prepare-pg17
	$(CARGO) build --workspace --bins
ifeq ($(HAS_NEXTEST),yes)
	$(CARGO) nextest run --workspace --lib --bins
	$(CARGO) nextest run --workspace --test '*'
else
	$(CARGO) test --workspace --lib --bins
	$(CARGO) test --workspace --test '*' -- --test-threads 2
endif
	$(CARGO) test --workspace --doc --quiet

unit:
	$(CARGO) test --workspace --lib --bins

e2e: prepare prepare-pg17
	$(CARGO) build --workspace --bins
ifeq ($(HAS_NEXTEST),yes)
	SKEIN_TEST_LONG=1 $(CARGO) nextest run -p skein-loadtest --test main
else
	SKEIN_TEST_LONG=1 $(CARGO) test -p skein-loadtest --test main -- --test-threads 2
endif

check: prepare
	$(CARGO) fmt --all --check
	.ci/file-size
	.ci/architecture
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings --document-private-items -A rustdoc::private_intra_doc_links" $(CARGO) doc --workspace --no-deps --quiet
ifeq ($(HAS_DENY),yes)
	$(CARGO) deny --log-level error check bans licenses sources
else
	@echo "check: cargo-deny is not installed: licences and sources are not checked (cargo install cargo-deny)"
endif

bench: prepare
	$(CARGO) bench --workspace
