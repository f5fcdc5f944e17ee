"""The import rule of ARCHITECTURE.md, read off the source with `ast`: imports go down only."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from genomes import make_store, random_dna

from seqpope.domains.base import DATASETS

ROOT = Path(__file__).resolve().parent.parent

# From the roof to the ground, a line a floor. A room is a module or a package; it may import rooms of lower floors
# and itself, never a room beside or above it. A function's own imports count like those at a file's head.
FLOORS = [
    ["seqpope.__main__"],
    ["seqpope.cli"],
    ["seqpope.commands"],
    ["seqpope.studio"],
    ["seqpope.reproduce"],
    ["seqpope.experiment", "seqpope.generate", "seqpope.score", "seqpope.examine", "seqpope.inspection"],
    ["seqpope.report", "seqpope.output", "seqpope.track"],
    ["seqpope.evaluate", "seqpope.figures"],
    ["seqpope.stack"],
    ["seqpope.training", "seqpope.sampling"],
    ["seqpope.checkpoint", "seqpope.muon"],
    ["seqpope.nll", "seqpope.data.datamodule", "seqpope.decoding"],
    ["seqpope.model.transformer"],
    ["seqpope.model.positions", "seqpope.model.cache"],
    ["seqpope.config"],
    ["seqpope.model.config", "seqpope.kernels", "seqpope.presets"],
    ["seqpope.domains.music", "seqpope.domains.genome", "seqpope.domains.indexing"],
    ["seqpope.domains.base", "seqpope.data.windows", "seqpope.data.baselines"],
    ["seqpope.data.shards"],
    ["seqpope.provenance", "seqpope.results"],
    ["seqpope.statistics", "seqpope.progress", "seqpope.processes", "seqpope.files", "seqpope.markdown"],
    ["seqpope.signals"],
    ["seqpope.errors"],
    # Packages without code of their own; `import seqpope` is for the version.
    ["seqpope", "seqpope.data", "seqpope.domains", "seqpope.model"],
]
FLOOR_OF = {room: len(FLOORS) - index for index, rooms in enumerate(FLOORS) for room in rooms}
EMPTY = FLOORS[-1]

# Preparation turns raw data into stores: of seqpope it needs what files mean and how stores are written.
PREPARATION_MAY_IMPORT = (
    "data_prep",
    "seqpope.domains",
    "seqpope.data.shards",
    "seqpope.data.baselines",
    "seqpope.files",
    "seqpope.errors",
    "seqpope.processes",
    "seqpope.progress",
    "seqpope.provenance",
)
# Libraries that read what a domain's files hold; nothing outside the domains and their preparation needs them.
OF_DOMAINS = {"Bio", "music21", "pretty_midi", "miditok", "symusic", "mido", "pyfaidx", "pysam"}


def source_files(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    files = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = {**source_files("seqpope"), **source_files("data_prep")}


def imports(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it; `from package import module` is that module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if is_package else module.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base


def room_of(module: str) -> str | None:
    """The room a module is in: the longest name in the table that it is or lies under."""
    inside = [room for room in FLOOR_OF if module == room or (room not in EMPTY and module.startswith(room + "."))]
    return max(inside, key=len, default=None)


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a file of seqpope imports against the rule."""
    here = room_of(module)
    assert here is not None, f"{module} has no room: give it a line in FLOORS"
    found = []
    for name in imports(source, module, is_package):
        if name.split(".")[0] not in ("seqpope", "data_prep"):
            continue
        there = room_of(name)
        if there is None or (there != here and FLOOR_OF[there] >= FLOOR_OF[here]):
            found.append(f"{module} (floor {FLOOR_OF[here]}) imports {name} (floor {FLOOR_OF.get(there or '')})")
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("seqpope")])
def test_imports_go_down_only(module):
    path = MODULES[module]
    assert faults(module, path.read_text(), path.name == "__init__.py") == []


def test_every_room_of_the_table_exists_and_stands_once():
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))
    assert [room for room in rooms if room not in MODULES] == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("seqpope.training", "from seqpope.sampling import sample", True),  # beside
        ("seqpope.nll", "import seqpope.cli", True),  # above
        ("seqpope.nll", "def f():\n    from seqpope import training", True),  # above, hidden in a function
        ("seqpope.data.shards", "from .datamodule import Batch", True),  # above, relative
        ("seqpope.kernels.attention", "from seqpope.model import config", True),
        ("seqpope.cli", "import data_prep.jsb", True),
        ("seqpope.training", "from seqpope.nll import mean_nats", False),
        ("seqpope.kernels.attention", "from . import reference", False),
        ("seqpope.provenance", "import seqpope", False),
    ],
)
def test_the_rule_bites(module, source, fault):
    assert bool(faults(module, source)) == fault


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("seqpope.kernels")])
def test_kernels_know_tensors_only(module):
    for name in imports(MODULES[module].read_text(), module, MODULES[module].name == "__init__.py"):
        top = name.split(".")[0]
        assert (
            name == "seqpope.kernels"
            or name.startswith("seqpope.kernels.")
            or top in ("torch", "triton")
            or top in sys.stdlib_module_names
        ), name


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("data_prep")])
def test_preparation_knows_no_model(module):
    for name in imports(MODULES[module].read_text(), module, MODULES[module].name == "__init__.py"):
        if name.split(".")[0] in ("seqpope", "data_prep"):
            assert any(name == room or name.startswith(room + ".") for room in PREPARATION_MAY_IMPORT), name
        assert name.split(".")[0] not in ("torch", "lightning"), name


@pytest.mark.parametrize(
    "module", [name for name in MODULES if not name.startswith(("seqpope.domains", "data_prep"))]
)
def test_only_domains_read_their_files(module):
    names = imports(MODULES[module].read_text(), module, MODULES[module].name == "__init__.py")
    assert OF_DOMAINS.isdisjoint(name.split(".")[0] for name in names)


def test_modules_imported_by_name_are_those_of_the_table():
    """`ast` sees no import by name, so there are few: what the table of data sets names, and the studio's jobs."""
    callers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
    }
    assert callers == {"seqpope.commands.training", "seqpope.domains.base", "seqpope.studio.worker"}
    for dataset in DATASETS.values():
        assert dataset.preparation in source_files("data_prep")
        assert dataset.tokenizer.partition(":")[0].startswith(f"seqpope.domains.{dataset.domain}.")


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        # Light, for the help of the command line.
        ("seqpope.cli", {"torch", "lightning", "numpy", *OF_DOMAINS}),
        ("seqpope.config", {"torch", "lightning", "numpy"}),
    ],
)
def test_what_an_import_loads(module, foreign):
    """What imports bring with them is seen only by running them, through whatever other libraries it comes."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert module in loaded
    assert foreign.isdisjoint(loaded)


def test_what_training_loads(tmp_path):
    """From the kernels to windows of a genome, all in one process: torch and lightning take long to import."""
    make_store(tmp_path / "g", {"a": random_dna(500)}, {"train": [("a", 0, 500)]})
    steps = {
        "kernels": "import torch, seqpope.kernels",
        "attention": "x = torch.ones(1, 1, 2, 4); seqpope.kernels.pope_attention(x, x, x, torch.zeros(1, 4))",
        "experiment": "import seqpope.experiment",
        "everything": "import seqpope.evaluate, seqpope.report, seqpope.training",
        "genome": f"""
from pathlib import Path
from seqpope.config import DataConfig
from seqpope.data.datamodule import TokenDataModule
from seqpope.domains.base import open_store
store = open_store(Path({str(tmp_path / "g")!r}))
module = TokenDataModule(store, DataConfig(length=8, batch_size=2), seed=0, steps=2)
assert len(list(module.train_dataloader())) == 2
""",
    }
    looks = [f"{code}\nloaded[{name!r}] = list(sys.modules)" for name, code in steps.items()]
    code = "\n".join(["import json, sys", "loaded = {}", *looks, "print(json.dumps(loaded))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert {"lightning", "seqpope.model", "seqpope.data", "seqpope.errors"}.isdisjoint(loaded["kernels"])
    assert "triton" not in loaded["attention"]  # before it is used
    assert "seqpope.experiment" in loaded["experiment"]
    # Training reads tokens: it goes without the packages that read scores, MIDI or genomes.
    assert {*OF_DOMAINS, "pyBigWig"}.isdisjoint(loaded["everything"])
    # base.py says which module opens a store; nothing of a domain itself is imported for tokens.
    domains = {name for name in loaded["everything"] if name.startswith("seqpope.domains")}
    assert domains == {"seqpope.domains", "seqpope.domains.base"}
    assert {"pyfaidx", "pysam", "Bio", "pyarrow"}.isdisjoint(loaded["genome"])


def test_encodings_are_named_in_one_place():
    """A position encoding is an entry in positions.py; no other code asks which one it has (reports may)."""
    free = {
        "seqpope.model.positions",
        "seqpope.report",
        "seqpope.figures",
        "seqpope.config",
        "seqpope.checkpoint",
        "seqpope.reproduce.studies",
    }
    for module, path in MODULES.items():
        if module in free:
            continue
        constants = {
            node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
        }
        assert constants.isdisjoint({"pope", "rope"}), module


def test_empty_packages_are_empty():
    """What a package's __init__ imported, every module below it would import too."""
    for module in EMPTY:
        assert list(imports(MODULES[module].read_text(), module, True)) in ([], ["__future__"])


def test_no_room_for_odds_and_ends():
    banned = {"utils", "util", "common", "helpers", "misc"}
    for folder in ("seqpope", "data_prep", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            assert path.stem not in banned, path


def test_the_model_is_read_in_one_sitting():
    assert len(MODULES["seqpope.model.transformer"].read_text().splitlines()) < 250
