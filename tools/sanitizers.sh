#!/usr/bin/env bash
# The core under the address and undefined-behaviour sanitizers: the C++ driver, then tests/native and tests/runtime on a sanitized
# extension module. PYTHON=... chooses the interpreter, WORKERS=... how many processes test; more arguments go to pytest.
# The thread pool has a script of its own, with the thread sanitizer: tools/tsan.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
build=build/sanitized
export UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_leaks=0

echo "== build"
cmake -S . -B "$build/module" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSECATEUR_SANITIZE=ON -DPython_EXECUTABLE="$python" >/dev/null
cmake --build "$build/module" --parallel "$(nproc)" | tail -1

echo "== C++ driver"
"$build/module/driver"

echo "== extension module"
# Every Python started below, subprocesses of tests too, takes the sanitized module for the installed one.
module=$(ls "$PWD/$build"/module/_core*.so)
mkdir -p "$build/site"
cat >"$build/site/sitecustomize.py" <<PY
import importlib.util
import sys


class Sanitized:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, "$module") if name == "secateur._core" else None


sys.meta_path.insert(0, Sanitized)
PY

export PYTHONPATH="$PWD/$build/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONMALLOC=malloc OMP_NUM_THREADS=1
export SECATEUR_REQUIRE_NATIVE=1 SECATEUR_EXPECT_CORE="$module"
# The C++ library comes along: the sanitizer must find the function that throws before anything throws.
compiler=${CXX:-g++}
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)" \
  "$python" -m pytest tests/native tests/runtime -p no:cacheprovider -n "${WORKERS:-2}" --dist worksteal "$@"
