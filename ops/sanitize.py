"""Run tests of the CPU kernels under the address and undefined behaviour sanitizers: `make sanitize`.

    python ops/sanitize.py [arguments of pytest]        default: TESTS

Builds the CPU library with g++'s sanitizers into a folder of its own, and runs pytest with that library once for each
instruction set of this machine. A read or write outside of a tensor ends the process with a report. Before that, a
library that does read outside of one must be caught, so that a run which finds nothing means something.
"""

import os
import subprocess
import sys
from pathlib import Path

import build

LIBRARIES = build.ROOT / "build" / "ops-sanitized"
OBJECTS = build.OBJECTS / "sanitized"
TESTS = [f"tests/ops/test_{name}.py" for name in ("deformable_attention", "fused", "attention_map", "determinism")]
TESTS += ["-k", "cpu", "-m", "not slow", "-q"]

CANARY_SOURCE = """
extern "C" __attribute__((visibility("default"))) float element(const float* data, long index) { return data[index]; }
"""
CANARY = """
import ctypes, sys, torch
element = ctypes.CDLL(sys.argv[1]).element
element.argtypes, element.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_float
numbers = torch.zeros(1000)
element(numbers.data_ptr(), int(sys.argv[2]))
"""
LOADED = """
import sys
from sparse_detr.ops import native
library = native.status()["cpu"]
in_use = library.unavailable is None and sys.argv[1] in str(library.path)
sys.exit(0 if in_use else f"the sanitized library is not in use: {library}")
"""


def main(arguments: list[str]) -> int:
    """Build, check that an error is caught, run the tests; return the exit status of the first run that fails."""
    try:
        build.build(LIBRARIES, objects=OBJECTS, choice="cpu", sanitize=True)
        environment = sanitized_environment()
        check_canary(environment)
    except build.BuildError as error:
        print(f"error: {error}\n{error.output}", file=sys.stderr)
        return 1
    subprocess.run([sys.executable, "-c", LOADED, str(LIBRARIES)], env=environment, cwd=build.ROOT, check=True)
    for isa in instruction_sets():
        print(f"==> Sanitizers, {isa}", flush=True)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(arguments or TESTS)]
        done = subprocess.run(command, env=environment | {"SPARSE_DETR_CPU_ISA": isa}, cwd=build.ROOT)
        if done.returncode:
            return done.returncode
    print("==> Sanitizers: nothing found")
    return 0


def sanitized_environment() -> dict[str, str]:
    """Return the environment of a Python that loads sanitized libraries.

    The sanitizer's runtime must come before all else. libstdc++ goes with it, since Python does not link to it and the
    runtime looks for the function that throws exceptions when the process starts. Leaks are not looked for: Python and
    PyTorch keep what they made until the process ends.
    """
    compiler = build.find_compiler().command
    runtimes = []
    for name in ("libasan.so", "libstdc++.so"):
        path = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            raise build.BuildError(f"{compiler[0]} has no {name}: the sanitizer run needs a g++ that has")
        runtimes.append(str(Path(path).resolve()))
    return os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
        "SPARSE_DETR_NATIVE_DIR": str(LIBRARIES),
        "PYTHONPATH": os.pathsep.join([str(build.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def check_canary(environment: dict[str, str]) -> None:
    """Check that element 999 of 1000 can be read, and that reading element 1000 is reported."""
    source = LIBRARIES / "canary.cpp"
    library = source.with_suffix(".so")
    source.write_text(CANARY_SOURCE)
    command = [*build.find_compiler().command, *build.CXX_FLAGS, *build.SANITIZERS, "-shared", str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    for index, expected in ((999, 0), (1000, 99)):
        canary = [sys.executable, "-c", CANARY, str(library), str(index)]
        done = subprocess.run(canary, env=environment, capture_output=True, text=True)
        if done.returncode != expected or (expected and "heap-buffer-overflow" not in done.stderr):
            message = f"reading element {index} of 1000 ended with status {done.returncode} instead of {expected}"
            raise build.BuildError(f"the sanitizer does not work here: {message}", done.stderr)


def instruction_sets() -> list[str]:
    """Return what this machine can run of the library's instruction sets."""
    import torch

    best = torch.backends.cpu.get_cpu_capability()
    names = ["baseline"]
    names += ["avx2"] if best in ("AVX2", "AVX512") else []
    return names + (["avx512"] if best == "AVX512" else [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
