"""Shape and regularisation of the transformer; the position encoding is named beside it, not in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from seqpope.errors import SeqpopeError

Magnitude = Literal["softplus", "relu", "none"]
DeltaInit = Literal["zero", "uniform", "centred", "local"]
DeltaBound = Literal["periodic", "clamp", "tanh"]


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
        longest_wavelength: PoPE, RoPE and YaRN. Frequencies whose wavelength, 2 pi / theta, is longer than so
            many tokens become 0, and their components know no position (arXiv 2410.06205): with the training
            length here, longer sequences turn nothing to an angle that training did not see. 0 keeps all.
        magnitude: PoPE only. What is made of each component of queries and keys: softplus; or, as the paper's
            ablations, relu or none (the component as it is, signed). Those two have no Triton kernel.
        delta_init: PoPE only. Where the phase biases start: zero extrapolates to longer sequences, uniform on
            [-2 pi, 0] is what the paper's music and genome recipes use; centred is the same phases told in
            [-pi, pi], so that optimizer.delta_decay pulls each to 0 by the shorter way; local is uniform for
            wavelengths, 2 pi / theta, shorter than delta_window, and zero for others.
        delta_window: PoPE only. Tokens, read by delta_init local: the training length or less.
        delta_learned: PoPE only. false keeps the phase biases where they start; with delta_init zero that is the
            paper's ablation without delta.
        delta_bound: PoPE only. periodic leaves delta free, since cos(x + delta) is 2 pi-periodic anyway; clamp
            is the paper's clamp to [-2 pi, 0], whose gradient is zero outside, so that deltas started at 0
            freeze as soon as they step over it; tanh learns x of delta = pi tanh(x / pi), in (-pi, pi), whose
            gradient fades towards the ends and is zero nowhere.
        yarn_factor: yarn and pope-yarn. How many times the original length sequences are long; 1 is RoPE or PoPE.
        yarn_original_length: yarn and pope-yarn. Tokens in a window of the training that YaRN extends.
    """

    width: int = 256
    layers: int = 6
    heads: int = 8
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    base: float = 10000.0
    longest_wavelength: float = 0.0
    magnitude: Magnitude = "softplus"
    delta_init: DeltaInit = "zero"
    delta_window: int = 2048
    delta_learned: bool = True
    delta_bound: DeltaBound = "periodic"
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
        if self.longest_wavelength != 0 and not 2 * math.pi <= self.longest_wavelength < math.inf:
            raise SeqpopeError(
                "model.longest_wavelength must be 0, which keeps all, or at least 2 pi (6.2832), which is the "
                f"shortest wavelength; it is {self.longest_wavelength}"
            )
        kinds = {"magnitude": Magnitude, "delta_init": DeltaInit, "delta_bound": DeltaBound}
        for name, value in ((name, getattr(self, name)) for name in kinds):
            if value not in get_args(kinds[name]):
                raise SeqpopeError(
                    f"model.{name} must be one of {', '.join(get_args(kinds[name]))}, it is {value!r}"
                )
        if self.delta_init == "centred" and self.delta_bound == "clamp":
            raise SeqpopeError(
                "model.delta_init centred starts half of the phases above 0, where model.delta_bound clamp "
                "has no gradient: take delta_init uniform, or delta_bound periodic"
            )
        if self.delta_window < 1:
            raise SeqpopeError(f"model.delta_window must be at least 1, it is {self.delta_window}")
        if not 1 <= self.yarn_factor < math.inf or self.yarn_original_length < 1:
            raise SeqpopeError(
                "model.yarn_factor and model.yarn_original_length must be at least 1, "
                f"they are {self.yarn_factor} and {self.yarn_original_length}"
            )

    @property
    def head_dim(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads
