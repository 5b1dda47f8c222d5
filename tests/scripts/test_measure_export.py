import argparse


def test_the_report_compares_every_file_with_the_model_in_pytorch(load_script):
    script = load_script("measure_export")
    results = {
        "machine": "a CPU",
        "exports": {"optimised onnx": {"seconds": 61.2, "mebibytes": 160.4}},
        "times": {"as it is PyTorch": [90.0, 100.0, 300.0], "optimised onnx": [50.0, 50.0, 60.0]},
    }
    args = argparse.Namespace(config_file="a/tiny.py", size="64x96", rounds=3)
    lines = script.report(results, args).splitlines()
    assert lines[2:4] == [
        "| PyTorch | as it is | 100 | 1.00x |  |  |",
        "| onnx | optimised | 50 | 2.00x | 61 | 160 |",
    ]
    assert lines[-1].startswith("tiny, one image of 64x96, random weights, a CPU, one thread, CPU time, median of 3")


def test_what_is_left_is_estimated_from_what_is_done(load_script):
    script = load_script("measure_export")
    assert script.eta({"exports": {}}, 4) == "some minutes each"
    assert script.eta({"exports": {"one": {"seconds": 100.0}, "two": {"seconds": 140.0}}}, 2) == "about 4 minutes left"
