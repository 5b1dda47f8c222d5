"""Only a training and an evaluation of its own leave detections in the folder of a run."""

from dataclasses import replace

import pytest
from torch import nn

from sparse_detr.config.run import EvaluationSet
from sparse_detr.engine.evaluate import box_scores, evaluate, evaluate_with_average
from sparse_detr.evaluation import COCOEvaluator
from tests.engine.toys import toy_run
from tests.evaluation.test_coco import data_set as data_set  # a fixture


class Recorded(nn.Module):
    """A detector that returns recorded instances by the id of the image."""

    def __init__(self, instances):
        super().__init__()
        self.instances = instances

    def forward(self, batch):
        return [{"instances": self.instances[image["image_id"]]} for image in batch]


@pytest.fixture
def run_and_model(tmp_path, data_set):
    """Return a run whose folder does not exist, and a detector."""
    name, pairs = data_set
    pairs = list(pairs)

    def build_evaluator():
        return COCOEvaluator(name, tasks=("bbox",), distributed=False, output_dir=str(tmp_path / "run" / "inference"))

    one = EvaluationSet(names=[name], build_loader=lambda: [[image] for image, _ in pairs], build_evaluator=None)
    sets = [replace(one, build_evaluator=build_evaluator), replace(one, build_evaluator=lambda: [build_evaluator()])]
    model = Recorded({image["image_id"]: instances for image, instances in pairs})
    return [replace(toy_run(tmp_path / "run"), evaluation_sets=[kind]) for kind in sets], model


def test_other_evaluations_write_nothing_into_the_folder_of_the_run(tmp_path, run_and_model):
    runs, model = run_and_model
    for run in runs:
        assert evaluate(run, model)["bbox"]["AP50"] > 0
    assert box_scores(runs[0], model, max_images=2)["AP50"] > 0
    assert not (tmp_path / "run").exists()


def test_a_training_keeps_its_detections_when_others_evaluate(tmp_path, run_and_model):
    [run, _], model = run_and_model
    evaluate_with_average(run, model, None)
    file = tmp_path / "run" / "inference" / "coco_instances_results.json"
    kept = file.read_bytes()
    box_scores(run, model, max_images=2)
    assert file.read_bytes() == kept
