#!/usr/bin/env bash
# The kernels cross-compiled for 64-bit ARM and run under qemu: correctness of NEON, nothing about its speed.
# Then the same driver natively, for the instruction sets of this machine.
# Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(uname -m)" != aarch64 ]; then
  for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: see the head of $0" >&2; exit 1; }
  done
  echo "== aarch64, under qemu"
  LDFLAGS=-static bash tools/kernel_driver.sh build/driver-aarch64 aarch64-linux-gnu-g++ aarch64 qemu-aarch64-static
fi
echo "== $(uname -m), native"
bash tools/kernel_driver.sh "build/driver-$(uname -m)" "${CXX:-g++}" "$(uname -m)"
