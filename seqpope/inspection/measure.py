"""How much trained attention makes of each frequency, on real tokens; and what delta was learned.

Magnitudes are those of `PositionEncoding.magnitudes`, measured on real tokens: PoPE's softplus(q_c) and
softplus(k_c), the 2-norms of RoPE's and YaRN's pairs. For both a frequency adds at most query x key to the
score of two tokens, so they are on one scale; PoPE has D frequencies where RoPE has D / 2. A frequency of
wavelength 2 pi / theta longer than the training window never completed a turn in training.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqpope.data.shards import Split
from seqpope.data.windows import Window, plan_windows
from seqpope.errors import SeqpopeError
from seqpope.model.positions import PositionEncoding
from seqpope.model.transformer import Attention, Transformer
from seqpope.nll import window_batches

WHAT = ("query", "key", "product")


def attentions(model: Transformer) -> list[Attention]:
    """Each layer's attention."""
    return [module for module in model.modules() if isinstance(module, Attention)]


@contextlib.contextmanager
def watched(model: Transformer, take: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """Within the block, each pass of the model calls take(layer, q, k) with (B, L, H, D) as projected."""

    def hook(attention: Attention) -> Callable[[nn.Module, Any, Tensor], None]:
        def projected(module: nn.Module, inputs: Any, qkv: Tensor) -> None:
            q, k, _ = qkv.unflatten(-1, (3, attention.heads, -1)).unbind(-3)
            take(attention.layer, q, k)

        return projected

    handles = [each.qkv.register_forward_hook(hook(each)) for each in attentions(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def position_encodings(model: Transformer) -> list[PositionEncoding]:
    """Each layer's position encoding."""
    return [attention.position for attention in attentions(model)]


@torch.inference_mode()
def measure_magnitudes(
    model: Transformer,
    split: Split,
    windows: Sequence[Window],
    padding_id: int,
    *,
    device: torch.device | str = "cpu",
    batch_tokens: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Mean magnitudes over what the model reads in these windows, padding before a document's start included.

    Memory does not grow with the number of windows. The forward pass is fp32, sums are fp64.

    Args:
        batch_tokens: about as many tokens are read at once, at least one window.
        progress: called with tokens done and tokens in all.

    Returns:
        (layers, H, F) each: "query" and "key" E[|q_c|], E[|k_c|]; "product" E[|q_c| |k_c|] of a token with
        itself, whose sum over frequencies is PoPE's mean score at distance 0 with delta 0, before the scale
        1 / sqrt(D).

    Raises:
        SeqpopeError: the model gives no numbers (nan).
    """
    encodings = position_encodings(model)
    theta = encodings[0].theta()
    assert theta is not None, "check first that the encoding has frequencies"
    sums = torch.zeros(
        len(WHAT), len(encodings), model.config.heads, len(theta), dtype=torch.float64, device=device
    )
    total, done = sum(window.end - window.start for window in windows), 0
    own = torch.empty(0)

    def take(layer: int, q: Tensor, k: Tensor) -> None:
        """Add a batch; (B, L, H, D)."""
        mu_q, mu_k = (encodings[layer].magnitudes(x.float()).double() * own for x in (q, k))  # (B, L, H, F)
        for row, magnitude in enumerate((mu_q, mu_k, mu_q * mu_k)):
            sums[row, layer] += magnitude.sum((0, 1))

    with watched(model, take):
        for batch in window_batches(split, padding_id, windows, batch_tokens=batch_tokens):
            sizes = torch.tensor([window.end - window.start for window in batch.windows])
            inside = torch.arange(batch.ids.shape[1]) < sizes[:, None]
            own = inside[..., None, None].to(device, torch.float64)
            model(batch.ids.to(device), head=False)
            done += int(sizes.sum())
            if progress is not None:
                progress(done, total)
    if not bool(sums.isfinite().all()):
        raise SeqpopeError(
            "the model gives no numbers (nan): its weights are damaged or its training went wrong; "
            "inspect another checkpoint"
        )
    means = (sums / total).cpu().numpy()
    return dict(zip(WHAT, means, strict=True))


def choose_windows(split: Split, length: int, tokens: int) -> tuple[list[Window], int]:
    """Windows side by side in their documents, evenly spread over the split; and how many there are in all.

    The same every time: of W windows that hold N tokens, number floor((i + 1/2) W / n) for i below n, where
    n = ceil(W tokens / N); all of them if `tokens` is N or more.

    Raises:
        SeqpopeError: the split holds no token.
    """
    windows = plan_windows(split, length, length)
    there = sum(window.end - window.start for window in windows)
    if not there:
        raise SeqpopeError(
            "expected a split with tokens to read, and it has none: prepare the data again, "
            "or name another --split"
        )
    count = min(len(windows), math.ceil(len(windows) * tokens / there))
    return [windows[(2 * i + 1) * len(windows) // (2 * count)] for i in range(count)], len(windows)


def bands_of(wavelengths: np.ndarray, length: int) -> list[dict[str, Any]]:
    """Frequencies by wavelength in tokens: up to 1/64 of the training window, 1/8, the whole, and beyond.

    Returns:
        A record for each band that has a frequency: "from" and "to" (None: no end) in tokens, and
        "frequencies", the indices of those with from < wavelength <= to. In the one that is "beyond" none
        turns once within the window.
    """
    edges = [0.0, length / 64, length / 8, float(length), math.inf]
    bands = []
    for low, high in itertools.pairwise(edges):
        inside = np.flatnonzero((wavelengths > low) & (wavelengths <= high)).tolist()
        if inside:
            bands.append(
                {
                    "from": low,
                    "to": None if high == math.inf else high,
                    "beyond": high == math.inf,
                    "frequencies": inside,
                }
            )
    return bands


def shares(values: np.ndarray, bands: Sequence[dict[str, Any]]) -> np.ndarray:
    """Share of each layer's magnitude in each band, all heads together: (layers, H, F) -> (layers, bands).

    Raises:
        SeqpopeError: a layer has no magnitude at all.
    """
    whole = values.sum((1, 2))
    if not whole.all():
        layer = int(np.flatnonzero(whole == 0)[0]) + 1
        raise SeqpopeError(
            f"no query or key of layer {layer} has a magnitude: its weights are 0, or a ReLU let nothing through; "
            "inspect another checkpoint"
        )
    return np.stack([values[..., band["frequencies"]].sum((1, 2)) / whole for band in bands], -1)


def wrapped(angles: np.ndarray) -> np.ndarray:
    """Angles in [-pi, pi]; cosines stay the same."""
    return angles - 2 * math.pi * np.round(angles / (2 * math.pi))


def describe_delta(model: Transformer) -> dict[str, Any] | None:
    """The learned phase biases; None if the encoding learns none.

    Returns:
        "wrapped": (layers, H, F) as the score sees them, in [-pi, pi]. "learned": the parameters themselves.
        "start": where they started, 0, or None where they were drawn; "init": model.delta_init. "bound":
        model.delta_bound. "layers":
        for each layer mean, root mean square and largest |wrapped|; "opposed", the share over a quarter turn,
        where the frequency counts against keys at the query's own place; "outside", the share of parameters
        outside [-2 pi, 0] (under the clamp they have no gradient); "moved" and "moved_most", mean and largest
        distance of a parameter from its start, None where that is not known. Radians.
    """
    encodings = position_encodings(model)
    seen, learned = [], []
    for encoding in encodings:
        bounded = encoding.bounded_delta()
        if bounded is None or not model.config.delta_learned:
            return None
        seen.append(bounded.detach().double().cpu().numpy())
        learned.append(encoding.get_parameter("delta").detach().double().cpu().numpy())
    raw, angles = np.stack(learned), wrapped(np.stack(seen))
    start = 0.0 if model.config.delta_init == "zero" else None
    layers = []
    for angle, parameter in zip(np.abs(angles), raw, strict=True):
        moved = None if start is None else np.abs(parameter - start)
        layers.append(
            {
                "mean": float(angle.mean()),
                "rms": float(np.sqrt((angle**2).mean())),
                "largest": float(angle.max()),
                "opposed": float((angle > math.pi / 2).mean()),
                "outside": float(((parameter > 0) | (parameter < -2 * math.pi)).mean()),
                "moved": None if moved is None else float(moved.mean()),
                "moved_most": None if moved is None else float(moved.max()),
            }
        )
    return {
        "wrapped": angles.tolist(),
        "learned": raw.tolist(),
        "start": start,
        "init": model.config.delta_init,
        "bound": model.config.delta_bound,
        "layers": layers,
    }
