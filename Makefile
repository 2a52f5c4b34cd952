# The front door. Every target installs what it needs (tools/install-deps) and is a few lines.
SHELL := /bin/bash
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
# ccache shares its objects between checkouts in different folders.
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1

.PHONY: build demo test bench format lint fuzz install asan tsan clean

build:
	@tools/install-deps build test
	cmake --preset release -DKRAIT_TESTS=ON -DKRAIT_BENCH=ON
	cmake --build build -j $(JOBS)

# From nothing to a trained model that speaks, in a few minutes.
demo:
	@tools/demo

# Threads of one test that wait leave the cores to another.
test: lint build
	OMP_WAIT_POLICY=passive ctest --test-dir build -j $(JOBS) --output-on-failure

bench: build
	for bench in build/*_bench; do $$bench || exit 1; done
	for what in op train prefill decode; do build/krait bench $$what || exit 1; done

format:
	@tools/install-deps lint
	tools/format

lint:
	@tools/install-deps lint
	tools/lint

# Every parser: its tests under the sanitizers, then its fuzz target for a while.
fuzz:
	@tools/install-deps build test fuzz
	cmake --preset fuzz
	cmake --build build-fuzz -j $(JOBS) --target fuzzers io_test
	build-fuzz/io_test --gtest_brief=1
	tools/fuzz build-fuzz $(FUZZ_SECONDS)

asan:
	@tools/install-deps build test
	cmake --preset $@
	cmake --build build-$@ -j $(JOBS)
	ctest --test-dir build-$@ --output-on-failure

# Archer tells the sanitizer of what OpenMP waits for; oneDNN and others are not compiled for it.
tsan:
	@tools/install-deps build test fuzz
	cmake --preset $@
	cmake --build build-$@ -j $(JOBS)
	OMP_TOOL_LIBRARIES=$$(dirname $$(readlink -f $$(command -v clang)))/../lib/libarcher.so TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
	  ctest --test-dir build-$@ --output-on-failure

install: build
	cmake --install build --prefix $(PREFIX)

clean:
	rm -rf build build-*
