"""Adds to a built wheel what lies outside the package: the configs of `configs/` and `projects/*/configs/`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copies the configs to `sparse_detr/_configs`; an editable install reads them from the repository itself."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "sparse_detr" / "_configs"
        for folder in (ROOT / "configs", *sorted(ROOT.glob("projects/*/configs"))):
            if folder.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(folder, target / folder.relative_to(ROOT), ignore=ignored, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
