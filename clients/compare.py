#!/usr/bin/env python3
"""Run the same work under a plain loop, threads, processes, Parallel Python and Celery's pools, and compare.

It is `make compare` with options; --help lists them.

Examples:
  compare.py --work cpu --only multiprocessing,prefork
  compare.py mymodule:resize --args '["picture.png", 200]'
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    command = Path(sys.executable).with_name("clusterkit")
    os.execv(command, [str(command), "compare", *sys.argv[1:]])  # noqa: S606 - becomes the command
