"""A study that trains in seconds on a CPU: Indirect Indexing by models 16 wide, and data of 77 examples."""

from pathlib import Path
from typing import Any

from data_prep.indexing import prepare
from seqpope.reproduce.running import run_study
from seqpope.reproduce.studies import Arm, Study

TINY = {
    "model.width": 16,
    "model.layers": 1,
    "model.heads": 2,
    "data.batch_size": 4,
    "optimizer.steps": 6,
    "optimizer.warmup_steps": 2,
    "eval_every": 3,
}
ARMS = (
    Arm("PoPE, tiny", "pope", "indexing-paper", TINY, published=94.82),
    Arm("RoPE, tiny", "rope", "indexing-paper", TINY, published=11.16),
)
STUDY = Study(
    name="tiny",
    title="Tiny",
    question="Does it run?",
    measure="accuracy",
    arms=ARMS,
    pairs=(("PoPE, tiny", "RoPE, tiny"),),
    seeds=2,
    side_by_side=True,
    published="somewhere",
    notes=("A note.",),
)


def prepare_data(folder: Path) -> Path:
    """Make folder/indexing; the folder."""
    prepare(folder / "indexing", counts={"train": 60, "validation": 9, "test": 8}, progress=lambda _: None)
    return folder


def run(data: Path, out: Path, study: Study = STUDY, **settings: Any) -> tuple[dict[str, Any], list[str]]:
    """The document, and what was said."""
    said: list[str] = []
    return run_study(study, out, data_folder=data, device="cpu", say=said.append, **settings), said
