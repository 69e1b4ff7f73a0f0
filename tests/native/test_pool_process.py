"""The thread pool and the life of a process: its first region, forks, pinned processors, its end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from secateur.native.loading import core
from tests.native.oracle import needs_core

pytestmark = needs_core

# The extension module without the package: no torch, so a process takes milliseconds.
LOAD = """
import importlib.util, multiprocessing, os, sys, threading, time
spec = importlib.util.spec_from_file_location('secateur._core', {file!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
core.pool_insist(True)

def work(pieces=64):
    # Until workers have helped: this machine may be busy.
    for _ in range(2000):
        told = dict(pieces=pieces, threads=2, piece_us=10.0, work_us=1e3, program_us=1e4)
        _, wrong, helped = core.pool_probe(regions=3, **told)
        assert wrong == 0
        if helped:
            return
    raise AssertionError('no worker ever helped')
"""


def python(code: str) -> str:
    """What the script prints; it must end by itself, in order, and say nothing else."""
    load = LOAD.format(file=core.__file__)
    done = subprocess.run(
        [sys.executable, "-c", load + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_workers_start_with_the_first_region_that_is_worth_it() -> None:
    out = python("""
seen = [core.pool_state()[0]]
core.pool_probe(regions=10, pieces=64, threads=2, work_us=99.0)                    # short regions
core.pool_probe(regions=10, pieces=64, threads=2, work_us=5.0, program_us=99.0)    # a short program
core.pool_probe(regions=10, pieces=64, threads=1, work_us=1e6, program_us=1e6)     # one thread
core.pool_probe(regions=10, pieces=1, threads=2, work_us=1e6)                      # one piece
seen.append(core.pool_state()[0])
core.pool_probe(regions=1, pieces=64, threads=2, work_us=100.0)
seen.append(core.pool_state()[0])
core.pool_probe(regions=1, pieces=2, threads=9, work_us=100.0)                     # one helper is enough
seen.append(core.pool_state()[0])
core.pool_probe(regions=1, pieces=64, threads=4, work_us=5.0, program_us=1000.0)   # a long program of short regions
seen.append(core.pool_state()[0])
print(seen)
""")
    assert out == "[0, 0, 1, 1, 3]"


def test_workers_sleep_when_no_program_runs() -> None:
    out = python("""
work()
deadline = time.monotonic() + 60
while core.pool_state()[0] != core.pool_state()[1] and time.monotonic() < deadline:
    time.sleep(0.01)
before = time.process_time()
time.sleep(0.5)
print(core.pool_state()[:2], time.process_time() - before < 0.2)
""")
    assert out == "(1, 1) True"


def test_a_worker_does_not_spin_through_a_long_pause_of_a_program() -> None:
    out = python("""
# One piece: the caller works for a second, and nothing is offered to the worker that the program woke.
work()
program = threading.Thread(target=core.pool_probe, args=(1, 1, 2, 1e6, 1e6, 2e6))
program.start()
time.sleep(0.3)
asleep = False
while program.is_alive() and not asleep:
    time.sleep(0.01)
    asleep = core.pool_state()[:2] == (1, 1) and program.is_alive()
program.join()
print(asleep)
""")
    assert out == "True"


@pytest.mark.parametrize("started", [False, True])
def test_forked_children_have_threads_of_their_own(started: bool) -> None:
    out = python(f"""
def child(queue):
    before = core.pool_state()[0]
    work()
    queue.put((before, core.pool_state()[0]))

if {started}:
    work()
fork = multiprocessing.get_context('fork')
queue = fork.Queue()
children = [fork.Process(target=child, args=(queue,)) for _ in range(3)]
for process in children:
    process.start()
results = [queue.get(timeout=60) for _ in children]
for process in children:
    process.join(60)
work()
print(set(results), [process.exitcode for process in children])
""")
    assert out == "{(0, 1)} [0, 0, 0]"


def test_a_fork_while_other_threads_are_in_a_region() -> None:
    out = python("""
stop = False
def caller():
    while not stop:
        work()

callers = [threading.Thread(target=caller) for _ in range(2)]
for thread in callers:
    thread.start()
codes = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        work()
        os._exit(7)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop = True
for thread in callers:
    thread.join()
print(set(codes))
""")
    assert out == "{7}"


def test_the_process_ends_while_a_region_runs() -> None:
    out = python("""
def forever():
    core.pool_probe(regions=10**9, pieces=64, threads=2, piece_us=5.0, work_us=1e3, program_us=1e12)

threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
print('end')
""")
    assert out == "end"


def test_a_child_leaves_torchs_threads_alone() -> None:
    out = python("""
import torch
parent = core.pool_backend('gomp')
child = os.fork()
if child == 0:
    ok = core.pool_backend('gomp') == 'own' and core.pool_probe(regions=9, pieces=64, threads=2, backend='gomp')[1] == 0
    os._exit(0 if ok else 1)
loaded = sys.platform == 'linux' and 'libgomp' in open('/proc/self/maps').read()
print(parent == ('gomp' if loaded else 'own'), os.waitpid(child, 0)[1])
""")
    assert out == "True 0"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are pinned on Linux only")
def test_a_process_with_one_processor_has_one_thread_and_works() -> None:
    out = python("""
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
told = dict(pieces=64, threads=4, piece_us=5.0, work_us=1e3, program_us=1e5)
print(core.usable_threads(), core.pool_probe(regions=50, **told)[1:])
""")
    assert out == "1 (0, 0)"
