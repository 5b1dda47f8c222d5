import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def script(load_script):
    return load_script("install_detectron2")


def test_an_installed_detectron2_is_kept(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "find_spec", lambda name: SimpleNamespace(origin="site/detectron2/__init__.py"))
    monkeypatch.setattr(script, "pip_install", lambda *arguments: pytest.fail("pip was called"))
    assert script.main() == 0
    assert "kept" in capsys.readouterr().out


def test_the_wheel_is_placed_into_site_packages_where_its_tag_does_not_fit(script, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    options = script.placement()
    assert options[options.index("--target") + 1] == sysconfig.get_path("purelib")
    assert options[options.index("--python-version") + 1] == "3.10"


def test_nothing_is_forced_where_the_tag_of_the_wheel_fits(script, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "linux-x86_64")
    assert script.placement() == []


def test_pip_is_told_the_checksum_and_installs_no_dependency_of_the_old_pins(script, monkeypatch):
    calls = []

    def record(*arguments):
        calls.append((arguments, Path(arguments[-1]).read_text()))
        return True

    monkeypatch.setattr(script, "pip_install", record)
    assert script.install_detectron2()
    arguments, requirements = calls[0]
    assert {"--no-deps", "--require-hashes"} <= set(arguments)
    assert requirements == f"sal-detectron2==0.7.2 --hash=sha256:{script.SHA256}\n"


def test_a_failed_download_exits_with_the_remedy(script, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    monkeypatch.setattr(script, "DEPENDENCIES", ["pip"])
    monkeypatch.setattr(script, "placement", lambda: ["--target", str(tmp_path)])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert script.main() == 1
    assert "check the network" in capfd.readouterr().err
