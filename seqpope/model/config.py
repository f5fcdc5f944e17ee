"""Shape and regularisation of the transformer; the position encoding is named beside it, not in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from seqpope.errors import SeqpopeError


@dataclass
class ModelConfig:
    """Decoder-only transformer.

    Args:
        width: Width of the residual stream (C).
        layers: Number of blocks.
        heads: Number of attention heads; width / heads is the head dimension (D).
        mlp_ratio: Hidden width of the MLP over width.
        dropout: Dropout on embeddings and on what each sublayer adds to the residual stream.
        attention_dropout: Dropout on attention weights. Slow on a CPU.
        base: Wavelength base of the position encodings.
        delta_init: PoPE only. Where the phase biases start: zero extrapolates to longer sequences, uniform on
            [-2 pi, 0] is what the paper's music and genome recipes use, local is uniform for wavelengths of up to
            delta_window tokens and zero beyond.
        delta_bound: PoPE only. periodic leaves delta free, since cos(x + delta) is 2 pi-periodic anyway; clamp
            is the paper's clamp to [-2 pi, 0], whose gradient is zero outside, so that deltas started at 0
            freeze as soon as they step over it.
        delta_window: PoPE only, for delta_init local: the longest wavelength, in tokens, whose delta is drawn.
        delta_learned: PoPE only. false is the paper's ablation without delta: it stays 0.
        magnitude: PoPE only. What makes magnitudes of components: softplus; relu or none (as they are, signed)
            are the paper's ablations, and run without the Triton kernels.
        yarn_factor: YaRN only. How many times the original length sequences are long; 1 is RoPE.
        yarn_original_length: YaRN only. Tokens in a window of the RoPE training that YaRN extends.
    """

    width: int = 256
    layers: int = 6
    heads: int = 8
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    base: float = 10000.0
    delta_init: Literal["zero", "uniform", "local"] = "zero"
    delta_bound: Literal["periodic", "clamp"] = "periodic"
    delta_window: int = 2048
    delta_learned: bool = True
    magnitude: Literal["softplus", "relu", "none"] = "softplus"
    yarn_factor: float = 1.0
    yarn_original_length: int = 2048

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise SeqpopeError(f"model.{name} must be at least 1, it is {getattr(self, name)}")
        if self.width % self.heads:
            raise SeqpopeError(
                f"model.width must be a multiple of model.heads, {self.width} is no multiple of {self.heads}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise SeqpopeError(f"model.{name} must be in [0, 1), it is {getattr(self, name)}")
        if self.base <= 1 or self.mlp_ratio <= 0:
            raise SeqpopeError(
                "model.base must be above 1 and model.mlp_ratio above 0, "
                f"they are {self.base} and {self.mlp_ratio}"
            )

        if not self.delta_learned and self.delta_init != "zero":
            raise SeqpopeError(
                "model.delta_learned false leaves delta at 0: set model.delta_init to zero, it is "
                f"{self.delta_init}"
            )
        if self.delta_window < 1:
            raise SeqpopeError(f"model.delta_window must be at least 1 token, it is {self.delta_window}")
        if not 1 <= self.yarn_factor < math.inf or self.yarn_original_length < 1:
            raise SeqpopeError(
                "model.yarn_factor and model.yarn_original_length must be at least 1, "
                f"they are {self.yarn_factor} and {self.yarn_original_length}"
            )

    @property
    def head_dim(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads
