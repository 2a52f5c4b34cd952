#!/usr/bin/env bash
# check.sh BUILD COMPILER: installs BUILD into a fresh prefix, then builds and runs consumer/ by
# find_package(Krait) and by pkg-config.
set -euo pipefail
build=$1 compiler=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" >/dev/null
libdir=$(dirname "$(find "$work/prefix" -name 'libkrait.so')")

cmake -S "$here/consumer" -B "$work/by-cmake" -DCMAKE_CXX_COMPILER="$compiler" \
  -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/by-cmake" >/dev/null
"$work/by-cmake/consumer"

export PKG_CONFIG_PATH=$libdir/pkgconfig
# shellcheck disable=SC2046
"$compiler" -std=c++20 "$here/consumer/main.cpp" -o "$work/by-pkg-config" $(pkg-config --cflags --libs krait)
LD_LIBRARY_PATH=$libdir "$work/by-pkg-config"
echo "installed, found and used by both routes"
