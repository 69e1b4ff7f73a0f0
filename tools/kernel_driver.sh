#!/usr/bin/env bash
# Builds the driver of csrc/tests with the kernels of one architecture, and runs it.
#   kernel_driver.sh BUILD_FOLDER COMPILER ARCHITECTURE [EMULATOR...]
# The instruction sets and their flags come from csrc/kernels.def. CXXFLAGS adds to all of them, LDFLAGS to the link.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 compiler=$2 architecture=$3
shift 3

mkdir -p "$build"
common=(-std=c++17 -O3 -Wall -Wextra -Werror)
read -ra extra <<<"${CXXFLAGS:-}"
objects=() running=()
finish() { # one compiler at a time, the oldest first; a failed one ends the script
  wait "${running[0]}"
  running=("${running[@]:1}")
}
compile() { # SOURCE FLAGS...
  local source=$1 object
  object="$build/$(basename "$(dirname "$source")")_$(basename "$source" .cpp).o"
  shift
  while [ "${#running[@]}" -ge "$(nproc)" ]; do finish; done
  "$compiler" "${common[@]}" "$@" "${extra[@]}" -c "$source" -o "$object" &
  running+=($!)
  objects+=("$object")
}

rooms=$(sed -nE 's/^SECATEUR_ROOM\((\w+)\)$/\1/p' csrc/kernels.def)
while IFS='|' read -r isa wanted flags; do
  if [ "$wanted" = any ] || [ "$wanted" = "$architecture" ]; then
    read -ra isa_flags <<<"$flags"
    for room in $rooms; do
      [ -f "csrc/$room/$isa.cpp" ] || continue # the link misses what is listed and has no file
      compile "csrc/$room/$isa.cpp" -fno-exceptions -fno-rtti -fno-math-errno -fvisibility=hidden "${isa_flags[@]}"
    done
  fi
done < <(sed -nE 's/^SECATEUR_ISA\((\w+), (\w+), "([^"]*)", "[^"]*"\)$/\1|\2|\3/p' csrc/kernels.def)
[ "${#objects[@]}" -gt 1 ] || { echo "csrc/kernels.def names nothing for $architecture" >&2; exit 1; }

for source in csrc/conv/*_*.cpp csrc/dispatch.cpp csrc/pool/*.cpp csrc/program/*.cpp csrc/spmm/packed.cpp csrc/tests/*.cpp; do
  compile "$source"
done
while [ "${#running[@]}" -gt 0 ]; do finish; done
read -ra link <<<"${LDFLAGS:-}"
"$compiler" "${extra[@]}" "${objects[@]}" "${link[@]}" -pthread -ldl -o "$build/driver"
"$@" "$build/driver"
