"""A fuzzer of everything that reads bytes: mutated good inputs are read, or refused in one line, and nothing else.

    python tests/fuzz.py --inputs 1000000
    python tests/fuzz.py --only recording:7:1234        # that input again

Input k of a target depends on the target's name, the seed and k alone. An input may take 2 s of processor time, 60 s in
all, and memory for 512 MiB; anything but the documented refusal is a finding, and kept in --keep.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_targets import Target, targets

CPU_S, WALL_S, MEMORY = 2.0, 60.0, 512 << 20


class Finding(NamedTuple):
    target: str
    k: int
    what: str
    data: bytes


class Result(NamedTuple):
    inputs: int
    refused: int
    slowest_s: float
    findings: list[Finding]


class Hang(BaseException):
    """An input took too long; no `except Exception` may catch it."""


def input_of(target: Target, seed: int, k: int) -> bytes:
    rng = random.Random(f"{target.name}:{seed}:{k}")
    return rng.choice(target.mutations)(rng.choice(target.seeds), rng)


def fuzz(target: Target, seed: int, numbers: Iterator[int] | range, most_findings: int = 20) -> Result:
    """Read these inputs of a target; stops after most_findings."""
    inputs = refused = 0
    slowest_s = 0.0
    findings: list[Finding] = []
    for k in numbers:
        data = input_of(target, seed, k)
        inputs += 1
        begun_s = time.process_time()
        what = ""
        try:
            with limited():
                target.read(data)
        except target.refusal as error:
            refused += 1
            if len(str(error).splitlines()) != 1 or len(str(error)) > 1000 or not str(error).isprintable():
                what = f"a refusal that is no printable line: {str(error)[:300]!r}"
        except (Hang, Exception) as error:
            what = f"{type(error).__name__}: {str(error)[:300]}"
        slowest_s = max(slowest_s, time.process_time() - begun_s)
        if what:
            findings.append(Finding(target.name, k, what, data))
            if len(findings) >= most_findings:
                break
    return Result(inputs, refused, slowest_s, findings)


@contextmanager
def limited() -> Iterator[None]:
    """Raises Hang in the main thread when the time is up."""
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def watched() -> Iterator[None]:
    """Hangs are raised, and memory beyond MEMORY more than now is refused by the kernel."""

    def hang(number: int, _: Any) -> None:
        raise Hang(signal.Signals(number).name)

    before = [(name, signal.signal(name, hang)) for name in (signal.SIGPROF, signal.SIGALRM)]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy's of an overflow, say: it would be a second line
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for name, handler in before:
            signal.signal(name, handler)


def main() -> int:
    options = argparse.ArgumentParser(description="Fuzz everything that reads bytes.")
    options.add_argument("--inputs", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--target", help="only this one")
    options.add_argument("--only", help="TARGET:SEED:K, this one input again")
    options.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings are written")
    given = options.parse_args()
    total, found = 0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        chosen = targets(Path(name))
        if given.only:
            which, seed, k = given.only.split(":")
            target = next(t for t in chosen if t.name == which)
            print(target.read(input_of(target, int(seed), int(k))))
            return 0
        with watched():
            for target in chosen:
                if given.target not in (None, target.name):
                    continue
                count = round(given.inputs * (1.0 if given.target else target.weight))
                begun = time.process_time()
                result = fuzz(target, given.seed, range(count))
                total, found = total + result.inputs, found + len(result.findings)
                print(
                    f"{target.name:10} {result.inputs:8} inputs, {result.refused:8} refused, "
                    f"{len(result.findings)} findings, slowest {result.slowest_s * 1e3:.0f} ms, "
                    f"{time.process_time() - begun:.0f} s of processor time",
                    flush=True,
                )
                for finding in result.findings:
                    given.keep.mkdir(exist_ok=True)
                    (given.keep / f"{finding.target}-{given.seed}-{finding.k}").write_bytes(finding.data)
                    print(f"  {finding.target}:{given.seed}:{finding.k}  {finding.what}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{total} inputs, {found} findings; peak memory {peak} MiB")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
