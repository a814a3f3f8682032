# What a person and CI call.

.PHONY: prepare-pg17

# PostgreSQL 17 for the tests: a Debian trixie under /var/cache/skein-test (root, debootstrap).
prepare-pg17:
	loadtest/prepare-pg17
