"""MAESTRO as performance tokens (`python -m data_prep.maestro_performance --out data/maestro-performance`)."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from data_prep import maestro
from data_prep.stores import run

prepare = partial(maestro.prepare, dataset="maestro-performance")

if __name__ == "__main__":
    sys.exit(run(prepare, Path("data/maestro-performance"), __doc__ or "", takes_source=True))
