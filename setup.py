"""Build the native libraries (`ops/build.py`) and put the configs into a wheel."""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent


def load_native_builder():
    """Load ops/build.py from its path: during a build the repository cannot be imported."""
    spec = importlib.util.spec_from_file_location("sparse_detr_build", ROOT / "ops" / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithConfigs(build_py):
    """Copies the configs to `sparse_detr/_configs` of a wheel; an editable install reads them from the repository."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "sparse_detr" / "_configs"
        for folder in (ROOT / "configs", *sorted(ROOT.glob("projects/*/configs"))):
            if folder.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(folder, target / folder.relative_to(ROOT), ignore=ignored, dirs_exist_ok=True)


class BuildNative(Command):
    """Builds the native libraries: in place for an editable install, else into the wheel.

    It is a separate command, since setuptools turns an error of `build_py` in an editable install into a warning.
    """

    description = "build the native libraries of the attention operation"
    user_options = [("build-lib=", "d", "folder of the built packages")]
    editable_mode = False
    any_built = False

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        native = load_native_builder()
        output = native.NATIVE if self.editable_mode else Path(self.build_lib).resolve() / "sparse_detr/ops/_native"
        try:
            record = native.build(output)
        except native.BuildError as error:
            raise SystemExit(f"error: {error}") from None
        self.any_built = any(library["built"] for library in record["libraries"].values())

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "ops").rglob("*.[ch]*"))]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class TaggedWheel(bdist_wheel):
    """Tags a wheel with native libraries for this platform and any Python 3, and one without them for all platforms."""

    def run(self) -> None:
        self.run_command("build_native")
        if self.get_finalized_command("build_native").any_built:
            self.distribution.has_ext_modules = lambda: True
            self.root_is_pure = False
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, plat = super().get_tag()
        return (python, abi, plat) if self.root_is_pure else ("py3", "none", plat)


build.sub_commands = [*build.sub_commands, ("build_native", None)]
setup(cmdclass={"build_py": BuildWithConfigs, "build_native": BuildNative, "bdist_wheel": TaggedWheel})
