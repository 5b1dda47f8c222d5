import pytest


@pytest.fixture
def script(load_script):
    return load_script("report_quick_run")


def test_the_last_evaluation_is_reported_with_the_paths(script, tmp_path):
    lines = [
        '{"bbox/AP": 1.0, "bbox/AP50": 3.0, "iteration": 9}',
        '{"bbox/AP": 10.04, "bbox/AP50": 30.0, "bbox/AP75": NaN, "iteration": 19}',
        '{"total_loss": 3.0, "iteration": 19}',
    ]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    report = script.report(tmp_path, tmp_path / "pictures")
    assert "AP 10.0, AP50 30.0, AP75 nan" in report
    assert str(tmp_path / "model_final.pth") in report


def test_a_run_without_evaluation_says_so(script, tmp_path):
    assert "not recorded" in script.report(tmp_path, tmp_path)
