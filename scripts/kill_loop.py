"""Kill a small training again and again, every third time during a write, and check how it ends.

After each kill all files must be whole. The last start of each round must end bit for bit like a training that was
never killed.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.engine.kill_driver import in_child, train_as_command, train_until_killed, weights_and_state  # noqa: E402
from tests.engine.test_kills import assert_all_whole  # noqa: E402
from tests.engine.test_resume import assert_same_checkpoints  # noqa: E402

KILLS_A_ROUND = 5


def quietly(work) -> None:
    """Run `work` without its output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    work()


def main() -> int:
    """Kill, resume and compare; raise an error at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    done = 0
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed, folder = Path(scratch, "undisturbed"), Path(scratch, "0")
        in_child(lambda: quietly(lambda: train_as_command(undisturbed)))
        while done < args.kills:
            status = train_until_killed(folder, chance, in_write=done % 3 == 0)
            assert_all_whole(folder)
            ended = status == 0
            done += not ended
            print(f"\r{done} of {args.kills} kills; all files whole", end="", flush=True)
            if ended or done % KILLS_A_ROUND == 0 or done == args.kills:
                in_child(lambda folder=folder: quietly(lambda: train_as_command(folder)))
                assert_same_checkpoints(weights_and_state(undisturbed), weights_and_state(folder))
                folder = Path(scratch, f"after {done}.{status}")
    print("\nevery resumed training ended bit for bit like the undisturbed one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
