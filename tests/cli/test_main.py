import subprocess
import sys

import pytest

import sparse_detr.cli
from sparse_detr.cli import main as cli
from sparse_detr.errors import UserError


@pytest.fixture
def toy_command(tmp_path, monkeypatch):
    """Add a subcommand `toy` that raises the error its argument names."""
    (tmp_path / "toy.py").write_text(
        '"""Fail 100 % as asked.\n\nMore words.\n"""\n'
        "from sparse_detr.errors import UserError\n"
        "def add_arguments(parser):\n"
        "    parser.add_argument('how')\n"
        "def run(args):\n"
        "    if args.how == 'user':\n"
        "        raise UserError('keep_ratio is 7; give a number up to 1')\n"
        "    raise ModuleNotFoundError('No module', name=args.how)\n"
    )
    monkeypatch.setattr(sparse_detr.cli, "__path__", [*sparse_detr.cli.__path__, str(tmp_path)])
    monkeypatch.setattr(sparse_detr.cli, "toy", None, raising=False)  # so that the imported module is forgotten
    yield
    sys.modules.pop("sparse_detr.cli.toy", None)


def test_help_lists_every_command_and_imports_none_of_them():
    code = (
        "import sys\n"
        "from sparse_detr.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "prefixes = ('sparse_detr.cli.', 'detectron2')\n"
        "print('imported:', [name for name in sys.modules if name.startswith(prefixes)])\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name.replace("_", "-") in shown for name in cli.command_modules())
    assert "Print the versions and the hardware" in shown
    assert "imported: ['sparse_detr.cli.main']" in shown


def test_a_users_error_is_one_message_and_exit_code_2(toy_command, capsys):
    assert cli.main(["toy", "user"]) == 2
    assert capsys.readouterr().err == "error: keep_ratio is 7; give a number up to 1\n"


def test_missing_detectron2_gives_the_two_ways_to_install_it(toy_command, capsys):
    assert cli.main(["toy", "detectron2.config"]) == 2
    message = capsys.readouterr().err
    assert "git+" in message
    assert "scripts/install_detectron2.py" in message


def test_another_missing_module_is_not_hidden(toy_command):
    with pytest.raises(ModuleNotFoundError):
        cli.main(["toy", "scipy"])


def test_the_help_of_a_command_is_the_first_line_of_its_docstring(toy_command, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "Fail 100 % as asked." in shown
    assert "More words" not in shown


def test_an_unknown_command_is_refused_with_the_choices(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tain"])
    assert "collect-env" in capsys.readouterr().err


def test_no_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "command" in capsys.readouterr().err


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_config_overrides_may_stand_between_and_after_options(monkeypatch):
    import sparse_detr.cli.train

    seen = []
    monkeypatch.setattr(sparse_detr.cli.train, "run", lambda args: seen.append(args) or 0)
    assert cli.main(["train", "--config-file", "x.py", "a=1", "--resume", "b=2"]) == 0
    assert seen[0].opts == ["a=1", "b=2"]
    assert seen[0].resume


def test_an_unknown_option_is_refused():
    with pytest.raises(SystemExit):
        cli.main(["train", "--config-file", "x.py", "--resme"])


NEGATIVE = ["--config-file", "x.yaml", "A", "1", "--resume", "SEED", "-1", "--output-dir", "o", "B", "-.5"]


def test_negative_values_may_stand_after_options(monkeypatch):
    import sparse_detr.cli.train
    import sparse_detr.train

    seen = []
    monkeypatch.setattr(sparse_detr.cli.train, "run", lambda args: seen.append(args) or 0)
    monkeypatch.setattr(sparse_detr.train, "run", lambda args: seen.append(args) or 0)
    assert cli.main(["train", *NEGATIVE]) == 0
    assert sparse_detr.train.main(NEGATIVE) == 0
    for args in seen:
        assert args.opts == ["A", "1", "SEED", "-1", "B", "-.5"]
        assert args.resume
        assert args.output_dir == "o"


@pytest.mark.parametrize("command", ["demo", "convert", "train"])
def test_help_says_that_a_config_is_code(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert "a config is code: load only configs you trust" in " ".join(capsys.readouterr().out.split())
