"""Run the fuzzer for long, by hand: `python -m tests.config.fuzz NUMBER SEED`; it prints every other error."""

import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

from detectron2.config import CfgNode

from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.errors import UserError
from tests.config.mutations import LAZY, YACS, broken_text, generator, keys_of, random_overrides
from tests.meta import meta_device


def main(number, seed):
    warnings.simplefilter("ignore")
    rng, outcomes = generator(seed), Counter()
    keys = {path: keys_of(load_config(str(path))) for path in (LAZY, YACS)}
    texts = {path: make_run(load_config(str(path))).config_text for path in keys}
    folder = Path(tempfile.mkdtemp())
    for index in range(number):
        path = rng.choice((LAZY, YACS))
        overrides, file = [], path
        if rng.random() < 0.3:
            file = folder / f"x.{rng.choice(('yaml', 'yml', 'py')) if rng.random() < 0.2 else 'yaml'}"
            text = texts[path]
            file.write_bytes(broken_text(rng, text))
        else:
            overrides = random_overrides(rng, load_config(str(path)), keys[path])
        stage = "load"
        try:
            cfg = load_config(str(file), overrides)
            if isinstance(cfg, CfgNode):
                cfg.MODEL.DEVICE = "meta"
            elif "train" in cfg:
                cfg.train.device = "meta"
            run = make_run(cfg)
            stage = "build"
            with meta_device():
                model = run.build_model()
            stage = "optimizer"
            run.build_schedule(run.build_optimizer(model))
            outcomes["built"] += 1
        except UserError as error:
            outcomes[f"refused: {stage}"] += 1
            if stage != "load":
                print(overrides, stage, str(error)[:200], flush=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            outcomes["RAW"] += 1
            print("RAW", overrides, file, stage, type(error).__name__, str(error)[:200], flush=True)
            print("   ", traceback.extract_tb(error.__traceback__)[-1], flush=True)
            if file != path:
                (folder / f"raw_{index}{path.suffix}").write_bytes(file.read_bytes())
    print(outcomes)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
