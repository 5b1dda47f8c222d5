"""Install Detectron2 into the environment of the running Python, unless it is installed already.

Detectron2 has no official package. `sal-detectron2` 0.7.2 holds the Python files of upstream commit a59f0563 (2024).
Its wheel is tagged for CPython 3.10, but only its compiled extension needs that version, and this project does not use
the extension. So with another Python the files are unpacked into the site-packages.
"""

import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# The packages that it imports. Its own pins (numpy < 2) are too old: it runs with newer versions.
DEPENDENCIES = [
    "black",
    "cloudpickle",
    "fvcore",
    "hydra-core>=1.1",
    "iopath",
    "matplotlib",
    "numpy",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "pillow",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor",
    "tqdm",
    "yacs>=0.1.8",
]


def main() -> int:
    """Install what is missing; return 0 if Detectron2 is installed then."""
    found = find_spec("detectron2")
    if found is not None:
        print(f"Detectron2 is installed in {Path(found.origin or '').parent}, kept")
        return 0
    print(f"installing {REQUIREMENT} ...", flush=True)
    if not (pip_install(*DEPENDENCIES) and install_detectron2()):
        print(f"error: {failure_message()}", file=sys.stderr)
        return 1
    print("Detectron2 is installed")
    return 0


def install_detectron2() -> bool:
    """Install the pinned wheel; pip refuses a file with another checksum."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "detectron2.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
        return pip_install("--no-deps", "--require-hashes", *placement(), "--requirement", str(requirements))


def placement() -> list[str]:
    """Return the options with which pip accepts the wheel for this Python; [] if its tag fits."""
    if sys.version_info[:2] == (3, 10) and sysconfig.get_platform() == "linux-x86_64":
        return []
    tag = ["--implementation", "cp", "--python-version", "3.10", "--abi", "none", "--platform", "any"]
    return ["--only-binary=:all:", *tag, "--target", sysconfig.get_path("purelib")]


def pip_install(*arguments: str) -> bool:
    """Run pip in this environment; its output goes to the terminal."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *arguments]
    return subprocess.run(command).returncode == 0


def failure_message() -> str:
    """Return the remedy for a failed installation."""
    return (
        f"pip could not install {REQUIREMENT}, see its message above; if a download failed, check the network and "
        "pip's index settings and run this again; if the checksum differs, your package index serves another file "
        "than the released one; you can also install Detectron2 from its own repository, which this script keeps"
    )


if __name__ == "__main__":
    sys.exit(main())
