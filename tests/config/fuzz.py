"""Long run of the fuzzer by hand: `python -m tests.config.fuzz NUMBER SEED`; prints what is no `UserError`."""

import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.errors import UserError
from tests.config.mutations import LAZY, YACS, broken_text, generator, keys_of, random_overrides
from tests.meta import meta_device


def main(number, seed):
    warnings.simplefilter("ignore")
    rng, outcomes = generator(seed), Counter()
    keys = {path: keys_of(load_config(str(path))) for path in (LAZY, YACS)}
    folder = Path(tempfile.mkdtemp())
    for index in range(number):
        path = rng.choice((LAZY, YACS))
        overrides, file = [], path
        if rng.random() < 0.3:
            file = folder / f"x{path.suffix}"
            text = path.read_text().replace(
                "from .trees", f"import sys; sys.path.insert(0, {str(path.parent)!r})\nfrom .t"
            )
            file.write_bytes(broken_text(rng, text))
        else:
            overrides = random_overrides(rng, load_config(str(path)), keys[path])
        stage = "load"
        try:
            run = make_run(load_config(str(file), overrides))
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
