"""A script ends with a sentence where a user can mend the cause."""

import pytest

from sparse_detr.errors import UserError, run_script


@pytest.mark.parametrize("status", [0, 3, None])
def test_a_script_exits_with_the_status_of_its_main(status):
    with pytest.raises(SystemExit) as exit_info:
        run_script(lambda: status)
    assert exit_info.value.code == status


def test_an_error_of_the_user_is_one_line_and_status_2(capsys):
    def main():
        raise UserError("no README.md; give another")

    with pytest.raises(SystemExit) as exit_info:
        run_script(main)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: no README.md; give another\n"


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 // 0)
