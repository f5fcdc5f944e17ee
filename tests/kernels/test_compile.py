"""Every entry of the tables of tiles fits the GPUs it is for; Triton compiles for them without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqpope.kernels.attention import WIDE_FP32_BYTES

# What a program may have, in bytes: compute capability 8.0, 8.6 (as 8.9 and 12.0), 9.0.
SHARED = {80: 166_912, 86: 101_376, 90: 232_448}


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_shared_memory(capability):
    script = Path(__file__).with_name("compile_tables.py")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), str(capability)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 20
    for row in rows:
        limit = SHARED[capability]
        if row["dtype"] == "fp32" and row["dim"] > 128:
            limit = WIDE_FP32_BYTES  # less, and `auto` takes SDPA
        assert row["shared"] <= limit, row
