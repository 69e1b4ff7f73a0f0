#!/usr/bin/env bash
# The thread pool under the thread sanitizer: the stress test of csrc/tests/pool.cpp, with the parking of Linux and with
# that of other systems. Then once more with a race planted, which the sanitizer must report: else it sees nothing here.
#   tsan.sh [BUILD_FOLDER]
# CXX chooses the compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/tsan}
compiler=${CXX:-g++}
flags=(-std=c++17 -O1 -g -fsanitize=thread -fno-omit-frame-pointer -Wall -Wextra -Werror -DSECATEUR_POOL_STRESS)
# Children of a fork start threads of their own, which the sanitizer forbids unless told.
export TSAN_OPTIONS="die_after_fork=0 exitcode=66 halt_on_error=1"

compile() { # PROGRAM FOLDER_OF_CSRC FLAGS...
  local program=$1 source=$2
  shift 2
  "$compiler" "${flags[@]}" "$@" "$source"/pool/*.cpp "$source/tests/pool.cpp" -o "$program" -pthread -ldl
}

mkdir -p "$build"
echo "== pool"
compile "$build/pool" csrc
"$build/pool"
echo "== pool, condition variables for futexes"
compile "$build/pool_portable" csrc -DSECATEUR_NO_FUTEX
"$build/pool_portable"

echo "== planted race: workers report their pieces without releasing what they wrote"
rm -rf "$build/planted"
mkdir -p "$build/planted/tests"
cp -r csrc/pool "$build/planted/pool"
cp csrc/tests/pool.cpp "$build/planted/tests/"
sed -i.before 's/done_\.fetch_add(ran, std::memory_order_seq_cst)/done_.fetch_add(ran, std::memory_order_relaxed)/' \
  "$build/planted/pool/crew.cpp"
if cmp -s "$build/planted/pool/crew.cpp" "$build/planted/pool/crew.cpp.before"; then
  echo "tools/tsan.sh no longer finds the line to break in csrc/pool/crew.cpp" >&2
  exit 1
fi
compile "$build/pool_planted" "$build/planted"
status=0
"$build/pool_planted" no-fork >"$build/planted.log" 2>&1 || status=$?
if [ "$status" -ne 66 ] || ! grep -q "data race" "$build/planted.log"; then
  echo "the planted race was not reported (exit status $status); see $build/planted.log" >&2
  exit 1
fi
echo "reported, as it must be"
