"""Checkpoints: safetensors weights with the model's configuration and the tokenizer's fingerprint in the header.

Nothing here unpickles: a checkpoint from a stranger can be read safely. Headers are read without torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes
from seqpope.model.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from seqpope.model.transformer import Transformer

FORMAT = "seqpope-1"
BEST = "best.safetensors"
WEIGHTS = Path(__file__).resolve().parent / "weights"  # models that come with the package
SHIPPED = {name: WEIGHTS / f"{name}.safetensors" for name in ("chorales", "chorales-rope", "genome")}


class CheckpointError(SeqpopeError):
    """A checkpoint is missing, damaged, or does not fit what it is used for."""


@dataclass
class CheckpointInfo:
    """What a model has to say of itself.

    `length` is the number of tokens in a training window; `trained` holds seed, step, validation nats/token
    and the like, for people.
    """

    domain: str
    dataset: str
    position: str
    vocabulary_size: int
    padding_id: int
    length: int
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    fingerprint: str
    trained: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT


def save_checkpoint(
    path: Path, model: Transformer, info: CheckpointInfo, *, dtype: torch.dtype | None = None
) -> None:
    """Write weights, in fp32 or as `dtype`, and header beside `path`, then rename."""
    import torch
    from safetensors.torch import save

    dtype = dtype or torch.float32

    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(path, save(state, metadata={"seqpope": json.dumps(asdict(info))}))


def named(file: Path, elsewhere: str | None = None) -> str:
    """What is said of weights beside results: their name if they come with the package, else where they are.

    Args:
        elsewhere: said of others instead of where they are.
    """
    whole = file.resolve()
    return f"shipped: {whole.stem}" if whole.parent == WEIGHTS else elsewhere or str(file)


def shipped(kind: str) -> Path:
    """Weights that come with the package, by their name in SHIPPED; says on stderr that it takes them.

    Raises:
        CheckpointError: this copy of the package comes without.
    """
    file = SHIPPED[kind]
    if not file.is_file():
        raise CheckpointError(
            f"no {kind} model comes with this copy of seqpope: train one and give --checkpoint RUN"
        )
    trained = read_info(file)
    validation = float(trained.trained["validation_nats_per_token"])
    print(
        f"no --checkpoint given: the {kind} model that comes with seqpope is taken ({trained.position}, trained "
        f"on {trained.dataset}, {validation:.3f} nats/token on validation)",
        file=sys.stderr,
        flush=True,
    )
    return file


def find_checkpoint(path: Path) -> Path:
    """The weights that `path` means: a file, a run's folder, or an experiment's (its best PoPE run, if any).

    What is no file or folder may be the name of weights that come with the package.

    Raises:
        CheckpointError: nothing of the kind is there.
    """
    path = Path(path)
    if path.is_file():
        return path
    named = SHIPPED.get(str(path))
    if named and named.is_file() and not path.exists():
        return named
    if (path / BEST).is_file():
        return path / BEST
    found = sorted(path.glob(f"*/{BEST}")) if path.is_dir() else []
    if not found:
        raise CheckpointError(
            f"no checkpoint at {path}: expected a .safetensors file, the folder of a finished run "
            f"(one that holds {BEST}) or one of {', '.join(SHIPPED)}, which come with seqpope"
            # Such as a folder that samples were written to.
            + (f"; what lies here has the name first, so give {named}" if named and path.exists() else "")
        )

    def rank(file: Path) -> tuple[bool, float]:
        info = read_info(file)
        return info.position != "pope", float(info.trained.get("validation_nats_per_token", float("inf")))

    return min(found, key=rank)


def read_info(path: Path) -> CheckpointInfo:
    """Read a checkpoint's header alone.

    Raises:
        CheckpointError: the file cannot be read as one of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): give a checkpoint that `seqpope train` wrote, "
            "or copy it again if it was cut short"
        ) from error
    if "seqpope" not in metadata:
        raise CheckpointError(f"{path} has no seqpope header: give a checkpoint that `seqpope train` wrote")
    try:
        raw = json.loads(metadata["seqpope"])
        if raw.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {raw.get('format')!r}, this version reads {FORMAT!r}"
            )
        info = CheckpointInfo(**raw)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} cannot be read ({error})") from error
    numbers = (info.vocabulary_size, info.padding_id, info.length)
    if not all(type(number) is int for number in numbers) or not (
        0 <= info.padding_id < info.vocabulary_size and info.length >= 1
    ):
        raise CheckpointError(
            f"the header of {path} has vocabulary_size, padding_id and length {numbers}: expected whole numbers, "
            "padding in the vocabulary, a length of at least 1"
        )
    return info


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[Transformer, CheckpointInfo]:
    """Build the model of a checkpoint with its weights in fp32, in evaluation mode.

    Args:
        path: whatever `find_checkpoint` takes.

    Raises:
        CheckpointError: the file is missing, damaged, or its tensors do not fit its header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from seqpope.model.transformer import Transformer

    file = find_checkpoint(path)
    info = read_info(file)
    try:
        model = Transformer(info.vocabulary_size, info.position, ModelConfig(**info.model))
        model.load_state_dict(load_file(str(file)))
    except (SafetensorError, RuntimeError, TypeError, OSError) as error:
        raise CheckpointError(f"the weights in {file} do not fit its header ({error})") from error
    return model.to(device).eval(), info


def check_fingerprint(info: CheckpointInfo, fingerprint: str, what: str) -> None:
    """Refuse a model whose tokens mean something else than those of `what`.

    Raises:
        CheckpointError: the fingerprints differ; both are named.
    """
    if info.fingerprint != fingerprint:
        raise CheckpointError(
            f"the model was trained on tokens {info.fingerprint[:12]} ({info.dataset}), but {what} has "
            f"{fingerprint[:12]}: prepare the data with the tokenizer of the model, or use another checkpoint"
        )
