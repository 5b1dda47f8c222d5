"""Build the native libraries of the attention operation by calling the compilers: `python ops/build.py`.

`setup.py` calls `build` too, so an install does the same. All that comes of it lies in `sparse_detr/ops/_native`:

    libsparse_detr_cpu.so    csrc/cpu: register.cpp, and kernels.cpp once for each instruction set
    libsparse_detr_cuda.so   csrc/cuda
    build.json               what was built, with what, and why the rest was not

Both are written against PyTorch's stable ABI: they link to no Python, and one file serves every PyTorch from 2.10 on.
PyTorch is not imported here, only its headers and its version are read. So pip's build isolation does not matter as
long as PyTorch is installed in the environment that pip installs into.

Environment:
    SPARSE_DETR_BUILD_OPS   auto (default): what can be built, never an error; cpu; cuda (includes cpu); none.
                            cpu and cuda are errors when they cannot be met.
    FORCE_CUDA=1            auto builds the CUDA library though no GPU is visible.
    TORCH_CUDA_ARCH_LIST    such as "8.0;9.0+PTX"; else the visible GPUs, else DEFAULT_ARCHITECTURES.
    CXX, CUDA_HOME, MAX_JOBS
"""

import argparse
import ctypes
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "ops" / "csrc"
NATIVE = ROOT / "sparse_detr" / "ops" / "_native"
OBJECTS = ROOT / "build" / "ops"

CHOICES = ("auto", "cpu", "cuda", "none")
STABLE_ABI = (2, 10)
MACROS = [f"-DTORCH_TARGET_VERSION=0x{STABLE_ABI[0]:02x}{STABLE_ABI[1]:02x}000000000000"]
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
INSTRUCTION_SETS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}
# 8.0 also runs on 8.6 and 8.9, the PTX of 9.0 on what came later. nvcc 13 no longer knows 7.0, which is left out then.
DEFAULT_ARCHITECTURES = ("7.0", "7.5", "8.0", "9.0+PTX")


class BuildError(Exception):
    """The reason why a library cannot be built, in one line; `output` is what the compiler said."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


@dataclass(frozen=True)
class Torch:
    """An installed PyTorch, read from its files."""

    folder: Path
    version: str
    cuda: str | None

    @property
    def major_minor(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Step:
    """A command that makes one object; the object's name holds a hash of all that it is made of."""

    name: str
    command: list[str]
    output: Path


@dataclass(frozen=True)
class Plan:
    """The way a library is made; `facts` go into build.json, `key` is a hash of all that it is made of."""

    library: str
    steps: list[Step]
    link: list[str]
    facts: dict
    key: str

    @property
    def file(self) -> str:
        return library_file(self.library)


def library_file(library: str) -> str:
    """Return the file name of the library `cpu` or `cuda`."""
    return f"libsparse_detr_{library}.so"


def build(output: Path = NATIVE, *, objects: Path = OBJECTS, choice: str | None = None, sanitize: bool = False) -> dict:
    """Make in the folder `output` the libraries that `choice` (SPARSE_DETR_BUILD_OPS) asks for, and no other.

    Args:
        objects: folder for what compilers make on the way, reused while its sources stay the same.
        sanitize: with address and undefined behaviour sanitizers; the CPU library only.

    Returns:
        What build.json holds.

    Raises:
        BuildError: an unknown choice, or an explicit one that cannot be met. `auto` and `none` raise nothing.
    """
    choice = choice or os.environ.get("SPARSE_DETR_BUILD_OPS") or "auto"
    if choice not in CHOICES:
        raise BuildError(f"SPARSE_DETR_BUILD_OPS is {choice!r}; it can be {', '.join(CHOICES)}")
    start = time.monotonic()
    try:
        record = _build(output, objects, choice, sanitize)
    except OSError as error:  # a full disk, a folder that may not be written
        record = _describe(choice, None, {name: _not_built(str(error)) for name in ("cpu", "cuda")})
    print(f"{record['summary']} ({time.monotonic() - start:.0f} s)", flush=True)
    required = {"cpu": ("cpu",), "cuda": ("cpu", "cuda")}.get(choice, ())
    failed = [name for name in required if not record["libraries"][name]["built"]]
    if failed:
        reasons = "; ".join(f"{name} library: {record['libraries'][name]['reason']}" for name in failed)
        raise BuildError(f"SPARSE_DETR_BUILD_OPS={choice} cannot be met. {reasons}")
    return record


def read_record(output: Path = NATIVE) -> dict:
    """Return what `build` left in that folder; {} if it never ran."""
    try:
        return json.loads((output / "build.json").read_text())
    except (OSError, ValueError):
        return {}


# --- What to build -----------------------------------------------------------------------------------------------


def _build(output: Path, objects: Path, choice: str, sanitize: bool) -> dict:
    previous = read_record(output).get("libraries", {})
    libraries: dict[str, dict] = {}
    plans = []
    torch = None
    for library, plan in (("cpu", plan_cpu), ("cuda", plan_cuda)):
        try:
            _check_wanted(library, choice, sanitize)
            torch = torch or find_torch()
            plans.append(plan(torch, objects, explicit=choice != "auto", sanitize=sanitize))
        except (BuildError, OSError, ValueError) as error:
            libraries[library] = _not_built(str(error))
    output.mkdir(parents=True, exist_ok=True)
    fresh = []
    for plan in plans:
        known, made = previous.get(plan.library, {}), output / plan.file
        if known.get("key") == plan.key and made.is_file() and made.stat().st_size == known.get("bytes"):
            libraries[plan.library] = known
        else:
            fresh.append(plan)
    libraries.update(_execute(fresh, output, objects))
    for name, facts in libraries.items():
        if not facts["built"]:  # a library of other sources must not be loaded
            (output / library_file(name)).unlink(missing_ok=True)
    record = _describe(choice, torch, dict(sorted(libraries.items())))
    _write(output / "build.json", json.dumps(record, indent=2) + "\n")
    return record


def _check_wanted(library: str, choice: str, sanitize: bool) -> None:
    if choice == "none" or (library == "cuda" and choice == "cpu"):
        raise BuildError(f"SPARSE_DETR_BUILD_OPS={choice}")
    if library == "cuda" and sanitize:
        raise BuildError("the sanitizers are for the CPU library")
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the native libraries are built on Linux only, and this is {platform.system()}")


def _not_built(reason: str) -> dict:
    return {"built": False, "reason": reason}


def _describe(choice: str, torch: Torch | None, libraries: dict[str, dict]) -> dict:
    parts = []
    if built := [f"{name} ({', '.join(facts['variants'])})" for name, facts in libraries.items() if facts["built"]]:
        parts.append(f"built {', '.join(built)}")
    for reason in dict.fromkeys(facts["reason"] for facts in libraries.values() if not facts["built"]):
        names = [name for name, facts in libraries.items() if facts.get("reason") == reason]
        parts.append(f"not built {', '.join(names)}: {reason}")
    return {
        "summary": f"sparse_detr ops: {' ; '.join(parts)}",
        "choice": choice,
        "torch": torch.version if torch else None,
        "stable_abi": ".".join(map(str, STABLE_ABI)),
        "libraries": libraries,
    }


def plan_cpu(torch: Torch, objects: Path, *, explicit: bool, sanitize: bool) -> Plan:
    """Plan the library of the CPU kernels: run-time dispatch over instruction sets on x86-64, else one of them."""
    compiler = find_compiler()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = list(INSTRUCTION_SETS) if x86 else ["baseline"]
    base = [*compiler.command, *CXX_FLAGS, *(SANITIZERS if sanitize else []), *MACROS, *_includes(torch)]
    folder = SOURCES / "cpu"
    compiled = [
        ("cpu/kernels.cpp", folder / "kernels.cpp", isa, [f"-DSPARSE_DETR_ISA={isa}", *INSTRUCTION_SETS[isa]])
        for isa in sets
    ]
    compiled.append(("cpu/register.cpp", folder / "register.cpp", "", []))
    steps = [
        _step(f"{name} {isa}".strip(), [*base, *flags, "-c", str(source)], source, objects, compiler, torch)
        for name, source, isa, flags in compiled
    ]
    # Linked by their names alone: the process that loads the library has its own PyTorch in memory.
    link = [*compiler.command, "-shared", *(SANITIZERS if sanitize else [])]
    # A function of a shared header that ends up in several objects is taken from the first: last are the special sets.
    link += [*[str(step.output) for step in reversed(steps)], *_libraries(torch, "torch_cpu", "c10")]
    return _plan("cpu", steps, link, {"compiler": compiler.version, "variants": sets})


def plan_cuda(torch: Torch, objects: Path, *, explicit: bool, sanitize: bool) -> Plan:
    """Plan the library of the CUDA kernels."""
    if torch.cuda is None:
        raise BuildError(f"PyTorch {torch.version} is built without CUDA")
    toolkit, nvcc = find_nvcc()
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    found = visible_architectures()
    forced = explicit or os.environ.get("FORCE_CUDA", "0") not in ("", "0")
    if not (forced or found):
        raise BuildError("no GPU is visible (FORCE_CUDA=1 builds it all the same)")
    release = cuda_release(nvcc)
    if release[0] < 12:
        raise BuildError(f"nvcc is of CUDA {release[0]}.{release[1]}, and C++20 needs 12")
    if release[0] != int(torch.cuda.split(".")[0]):
        mismatch = f"nvcc is of CUDA {release[0]}.{release[1]} and PyTorch {torch.version} of CUDA {torch.cuda}"
        if not forced:
            raise BuildError(f"{mismatch} (FORCE_CUDA=1 builds it all the same)")
        print(f"sparse_detr ops: warning: {mismatch}; the library may not load", flush=True)
    architectures = choose_architectures(named, found, known_architectures(nvcc))
    host = find_compiler()
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    flags += ["-ccbin", host.command[0]] if os.environ.get("CXX") else []
    base = [*nvcc.command, *flags, *code_flags(architectures), *MACROS, *_includes(torch)]
    sources = sorted([*(SOURCES / "cuda").glob("*.cu"), *(SOURCES / "cuda").glob("*.cpp")])
    if not sources:
        raise BuildError("there are no sources in ops/csrc/cuda")
    steps = [
        _step(f"cuda/{source.name}", [*base, "-c", str(source)], source, objects, nvcc, torch) for source in sources
    ]
    link = [*nvcc.command, "-shared", "-cudart", "shared", *[str(step.output) for step in steps]]
    link += [f"-L{folder}" for name in ("lib64", "lib") if (folder := toolkit / name).is_dir()]
    link += _libraries(torch, "torch_cuda", "torch_cpu", "c10_cuda", "c10")
    facts = {"compiler": f"{nvcc.version}, {host.version}", "variants": architectures}
    return _plan("cuda", steps, link, facts)


def _includes(torch: Torch) -> list[str]:
    return [f"-I{SOURCES}", "-isystem", str(torch.folder / "include")]


def _libraries(torch: Torch, *names: str) -> list[str]:
    return [f"-L{torch.folder / 'lib'}", *[f"-l{name}" for name in names]]


def _step(name: str, command: list[str], source: Path, objects: Path, compiler: Compiler, torch: Torch) -> Step:
    headers = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".h", ".cuh", ".inl"))
    parts = [json.dumps(command), compiler.version, torch.version]
    if not source.is_file():
        raise BuildError(f"{source.relative_to(ROOT)} is missing")
    digest = _hash(*parts, *[path.read_text() for path in (source, *headers)])
    stem = re.sub(r"\W+", "-", name)
    return Step(name, command, objects / f"{stem}-{digest}.o")


def _plan(library: str, steps: list[Step], link: list[str], facts: dict) -> Plan:
    return Plan(library, steps, link, facts, _hash(*[step.output.name for step in steps], json.dumps(link)))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# --- Building it -------------------------------------------------------------------------------------------------


def _execute(plans: list[Plan], output: Path, objects: Path) -> dict[str, dict]:
    """Compile all steps side by side, link, and return how it went: library -> its part of build.json."""
    if not plans:
        return {}
    objects.mkdir(parents=True, exist_ok=True)
    total = sum(not step.output.is_file() for plan in plans for step in plan.steps) + len(plans)
    progress = _Progress(total)
    start = time.monotonic()
    with ThreadPoolExecutor(_jobs()) as pool:
        waiting = [[pool.submit(_compile, step, progress) for step in plan.steps] for plan in plans]
        result = {}
        for plan, futures in zip(plans, waiting):
            try:
                for future in futures:
                    future.result()
                _link(plan, output, progress)
            except (BuildError, OSError) as error:
                print(getattr(error, "output", ""), flush=True)
                result[plan.library] = _not_built(str(error))
            else:
                seconds = round(time.monotonic() - start, 1)
                facts = {"built": True, "file": plan.file, **plan.facts, "seconds": seconds, "key": plan.key}
                facts["bytes"] = (output / plan.file).stat().st_size
                result[plan.library] = facts
    return result


class _Progress:
    """A line for each finished command."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def report(self, name: str, seconds: float) -> None:
        self.done += 1
        print(f"sparse_detr ops: [{self.done}/{self.total}] {name}: {seconds:.1f} s", flush=True)


def _compile(step: Step, progress: _Progress) -> None:
    if step.output.is_file():
        return
    stem = step.output.name.rpartition("-")[0]
    for stale in step.output.parent.glob(f"{stem}-{'?' * 16}.o"):
        stale.unlink(missing_ok=True)
    _make(step.name, step.command, step.output, progress)


def _link(plan: Plan, output: Path, progress: _Progress) -> None:
    _make(f"linking {plan.file}", plan.link, output / plan.file, progress)


def _make(name: str, command: list[str], target: Path, progress: _Progress) -> None:
    """Run a command that makes a file, which gets its name once it is complete."""
    start = time.monotonic()
    handle, unfinished = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    try:
        done = _run([*command, "-o", unfinished])
        if done.returncode:
            raise BuildError(f"{name}: {_first_error(done.stdout)}", f"{shlex.join(command)}\n{done.stdout}")
        os.chmod(unfinished, 0o644 if target.suffix == ".o" else 0o755)
        os.replace(unfinished, target)  # a process that has the old one loaded keeps it
    finally:
        Path(unfinished).unlink(missing_ok=True)
    progress.report(name, time.monotonic() - start)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    return subprocess.run(command, text=True, errors="replace", **output)


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal|undefined|no space)\b", line, re.IGNORECASE)]
    line = next(iter(errors), lines[-1] if lines else "the compiler failed and said nothing")
    return line.replace(f"{ROOT}{os.sep}", "")[:300]


def _jobs() -> int:
    named = os.environ.get("MAX_JOBS", "")
    return max(1, int(named) if named.isdecimal() else len(os.sched_getaffinity(0)))


def _write(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


# --- What is installed -------------------------------------------------------------------------------------------


def find_torch() -> Torch:
    """Return the PyTorch of this environment.

    In pip's build isolation `import torch` finds nothing, while the environment that is installed into is still the one
    that this Python belongs to: its folder of packages is looked at as well.
    """
    spec = find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    for folder in folders:
        if (folder / "version.py").is_file():
            return _read_torch(folder)
    raise BuildError("no PyTorch in this environment at build time (install it first, and use --no-build-isolation)")


def _read_torch(folder: Path) -> Torch:
    text = (folder / "version.py").read_text()
    version = re.search(r"^__version__[^=\n]*=\s*['\"](.+?)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=\n]*=\s*['\"](.+?)['\"]", text, re.MULTILINE)
    if version is None or not re.match(r"\d+\.\d+", version[1]):
        raise BuildError(f"{folder / 'version.py'} names no version of PyTorch")
    torch = Torch(folder, version[1], cuda and cuda[1])
    if torch.major_minor < STABLE_ABI:
        raise BuildError(
            f"PyTorch {torch.version} is older than {STABLE_ABI[0]}.{STABLE_ABI[1]}, whose stable ABI is used"
        )
    return torch


def find_compiler() -> Compiler:
    """Return the compiler of CXX, else the first of g++, clang++ and c++."""
    named = os.environ.get("CXX", "").strip()
    for command in [shlex.split(named)] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            done = _run([*command, "--version"])
            if done.returncode == 0:
                return Compiler(tuple(command), next(iter(done.stdout.splitlines()), command[0]))
    tried = f"CXX={named} cannot be run" if named else "none of g++, clang++, c++ can be run"
    raise BuildError(f"no C++ compiler: {tried}")


def find_nvcc() -> tuple[Path, Compiler]:
    """Return the CUDA toolkit's folder and its nvcc: that of CUDA_HOME (or CUDA_PATH), else the one on PATH.

    What is on PATH may be a link or a script that calls the true nvcc: nvcc itself is asked where its toolkit lies.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = shutil.which(str(Path(home) / "bin" / "nvcc") if home else "nvcc")
    if path is None:
        raise BuildError(f"no nvcc {f'in {home}/bin, which CUDA_HOME names' if home else 'on PATH, and no CUDA_HOME'}")
    done = _run([path, "--version"])
    lines = [line for line in done.stdout.splitlines() if "release" in line]
    if done.returncode or not lines:
        raise BuildError(f"{path} --version: {_first_error(done.stdout)}")
    return toolkit_of(path), Compiler((path,), lines[0])


def toolkit_of(nvcc: str) -> Path:
    """Return the folder that holds bin, include and lib of this nvcc, from what `nvcc --dryrun` prints."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cu"
        source.touch()
        done = _run([nvcc, "--dryrun", "-c", str(source), "-o", str(source.with_suffix(".o"))])
    top = re.search(r"^#\$ TOP=(.+)$", done.stdout, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1]


def cuda_release(nvcc: Compiler) -> tuple[int, int]:
    """Return the CUDA version of this nvcc."""
    found = re.search(r"release (\d+)\.(\d+)", nvcc.version)
    if found is None:
        raise BuildError(f"nvcc says no CUDA release: {nvcc.version}")
    return int(found[1]), int(found[2])


def known_architectures(nvcc: Compiler) -> list[str]:
    """Return what this nvcc can generate code for, such as ["7.5", "8.0"]."""
    listed = _run([*nvcc.command, "--list-gpu-arch"]).stdout
    return [f"{major}.{minor}" for major, minor in re.findall(r"compute_(\d+)(\d)\b", listed)]


def visible_architectures() -> list[str]:
    """Ask the driver for the compute capabilities of the GPUs that this process may use."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, value, result = ctypes.c_int(), ctypes.c_int(), set()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    for device in range(count.value):
        numbers = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        result.add(".".join(map(str, numbers)))
    return sorted(result)


def choose_architectures(named: str, found: list[str], known: list[str]) -> list[str]:
    """Choose the GPUs to build for: TORCH_CUDA_ARCH_LIST, else the visible GPUs', else the default list.

    Args:
        named: the variable's value: numbers, some with a letter (9.0a) or +PTX, between ";", "," or " ".
        found: those of the visible GPUs.
        known: those that nvcc knows; empty if it does not say.
    """
    if named:
        chosen = [part for part in re.split(r"[;,\s]+", named) if part]
        for part in chosen:
            if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", part):
                raise BuildError(f'TORCH_CUDA_ARCH_LIST holds {part!r}; write numbers such as "8.0;9.0+PTX"')
        unknown = [part for part in chosen if known and _number(part) not in known]
        if unknown:
            raise BuildError(
                f"this nvcc does not know {', '.join(unknown)} of TORCH_CUDA_ARCH_LIST, but {', '.join(known)}"
            )
        return list(dict.fromkeys(chosen))
    if found and all(part in known for part in found):
        return found
    # A GPU that is newer than nvcc runs the PTX of the last.
    return [part for part in DEFAULT_ARCHITECTURES if not known or _number(part) in known]


def _number(architecture: str) -> str:
    return re.sub(r"[a-z]?(\+PTX)?$", "", architecture)


def code_flags(architectures: list[str]) -> list[str]:
    """Return nvcc's -gencode for each architecture: binary code, and PTX where "+PTX" asks for it."""
    flags = []
    for architecture in architectures:
        name = architecture.removesuffix("+PTX").replace(".", "")
        kinds = ["sm", "compute"] if architecture.endswith("+PTX") else ["sm"]
        flags += [f"-gencode=arch=compute_{name},code={kind}_{name}" for kind in kinds]
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=NATIVE, help="folder of the libraries")
    parser.add_argument("--sanitize", action="store_true", help="with address and undefined behaviour sanitizers (CPU)")
    options = parser.parse_args(arguments)
    objects = OBJECTS / "sanitized" if options.sanitize else OBJECTS
    try:
        build(options.output.resolve(), objects=objects, sanitize=options.sanitize)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
