"""Search for the learning rate and the share of tokens with the best AP, with Optuna; each trial is a short training.

    pip install optuna
    python examples/optuna_search.py 20 configs/quick/sparse_detr_mnv2.py train.max_iter=200 train.eval_period=200

The study is in `output/search/study.db`: call it again to go on, on several machines at once if they share the file.
"""

import subprocess
import sys
from pathlib import Path

import optuna

from sparse_detr.studies.training import final_scores

OUTPUT = Path("output/search")


def objective(trial: optuna.Trial, config: str, *overrides: str) -> float:
    """Train once; return the AP."""
    folder = OUTPUT / f"trial_{trial.number:03d}"
    chosen = [
        f"optimizer.lr={trial.suggest_float('lr', 1e-4, 3e-3, log=True)}",
        f"model.selector.budget.keep_ratio={trial.suggest_float('keep_ratio', 0.1, 0.5)}",
    ]
    command = [sys.executable, "-m", "sparse_detr.train", "--config-file", config, f"train.output_dir={folder}"]
    subprocess.run([*command, *overrides, *chosen], check=True)
    return final_scores(folder)["AP"]


def main(trials: int, config: str, *overrides: str) -> optuna.Study:
    """Run trials; return the study."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="search", storage=f"sqlite:///{OUTPUT}/study.db", direction="maximize", load_if_exists=True
    )
    study.optimize(lambda trial: objective(trial, config, *overrides), n_trials=trials)
    return study


if __name__ == "__main__":
    print(main(int(sys.argv[1]), *sys.argv[2:]).best_trial)
