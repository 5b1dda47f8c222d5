"""How the threads of PyTorch wait for each other on the CPU; must run before PyTorch is loaded."""

import os
import sys
from collections.abc import MutableMapping

# Rounds that a waiting thread spins before it sleeps. Without this, GNU's OpenMP takes 300,000 (some milliseconds). If
# another program holds a core, the threads that spin keep that core from the thread that they all wait for.
SPIN_ROUNDS = 2000
# Variables of OpenMP in GNU's and Intel's library; a user who has set one of them has chosen.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let a thread that waits for others sleep after `SPIN_ROUNDS`; return whether this was set.

    Nothing is set if one of `WAIT_VARIABLES` is set, or if PyTorch is loaded: its OpenMP has read the variables then.
    Processes that this one starts inherit the setting. No number that PyTorch computes depends on it.
    """
    if "torch" in sys.modules or any(name in environment for name in WAIT_VARIABLES):
        return False
    environment["GOMP_SPINCOUNT"] = str(SPIN_ROUNDS)
    return True


def describe_waiting(environment: MutableMapping[str, str] = os.environ) -> str:
    """Return how waiting threads wait, as the end of a log line."""
    chosen = [f"{name}={environment[name]}" for name in WAIT_VARIABLES if name in environment]
    return ", ".join(chosen) or "unset: PyTorch was loaded first"
