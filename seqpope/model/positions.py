"""Position encodings: one class and one entry in POSITIONS each; nothing else names an encoding.

An encoding attends: it is given queries, keys and values as projected, knows where they stand, and returns
the attention's output. What it learns of positions are its parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqpope.errors import SeqpopeError
from seqpope.kernels import (
    MAGNITUDES,
    Spectrum,
    alibi_attention,
    alibi_slopes,
    frequencies,
    pope_attention,
    pope_attention_packed,
    rope_attention,
)
from seqpope.model.config import ModelConfig


class PositionEncoding(nn.Module):
    """What every encoding offers.

    `longer` names the encoding that reads the same weights in sequences longer than the training's, by the
    configuration's yarn_factor and yarn_original_length; None if there is none.
    """

    longer: ClassVar[str | None] = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, query_offset: int | Tensor = 0, dropout_p: float = 0.0
    ) -> Tensor:
        """Causal attention of queries at query_offset + 0..Lq-1 to keys at 0..Lk-1.

        Args:
            query_offset: one number, or (B,) for one each sequence.
            q: (B, H, Lq, D) as projected.
            k: (B, H, Lk, D) as projected; the key-value cache stores just this.
            v: (B, H, Lk, D).

        Returns:
            (B, H, Lq, D).
        """
        raise NotImplementedError(f"{type(self).__name__} must define attend")

    def attend_packed(self, qkv: Tensor, *, dropout_p: float = 0.0) -> Tensor:
        """The same of a whole sequence whose queries, keys and values lie in one projection, (B, L, 3, H, D)."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.attend(q, k, v, dropout_p=dropout_p)

    def theta(self) -> Tensor | None:
        """Its frequencies, (F,) fp64, radians a position, falling; None if it has none."""
        return None

    def magnitudes(self, x: Tensor) -> Tensor:
        """What queries or keys as projected, (..., D), weigh at each frequency: (..., F), at least 0.

        No score exceeds the sum over frequencies of a query's magnitude times a key's, at any distance.
        """
        raise NotImplementedError(f"{type(self).__name__} has no frequencies")

    def bounded_delta(self) -> Tensor | None:
        """Phase biases as the score sees them, (H, F) radians; None if there are none. Learned as `delta`."""
        return None

    def reset_parameters(self) -> None:
        """Draw what the encoding learns. The transformer calls this last, so that twins share all other draws."""


def truncated_frequencies(
    count: int, base: float, longest: float = 0.0, device: torch.device | None = None
) -> Tensor:
    """The frequencies of `base`, but 0 where the wavelength, 2 pi / theta, is longer than `longest` tokens.

    The slowest ones carry content more than position, and past the training's length they turn to angles
    never seen. p-RoPE (arXiv 2410.06205) sets a share of them to 0; here it is those beyond a wavelength.

    Args:
        longest: tokens; 0 keeps all.

    Returns:
        (count,) fp64, radians a position.
    """
    theta = frequencies(count, base, device)
    return theta.masked_fill(2 * math.pi / theta > longest, 0.0) if longest else theta


@dataclass(frozen=True)
class TruncatedSpectrum(Spectrum):
    """What `truncated_frequencies` gives."""

    base: float
    longest: float

    def on(self, device: torch.device) -> Tensor:
        return truncated_frequencies(self.count, self.base, self.longest, device)


def _spectrum(count: int, config: ModelConfig) -> Spectrum | None:
    # None where nothing is truncated: all frequencies are then those of the base, and their tables shared.
    longest = config.longest_wavelength
    return TruncatedSpectrum(count, config.base, longest) if longest else None


class RoPE(PositionEncoding):
    """Rotary position embedding (arXiv 2104.09864): what and where in one angle. The baseline."""

    longer = "yarn"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check_pairs(config)
        self.base, self.count, self.longest = config.base, config.head_dim // 2, config.longest_wavelength
        self.freqs = _spectrum(self.count, config)

    def theta(self) -> Tensor:
        return truncated_frequencies(self.count, self.base, self.longest)

    def magnitudes(self, x: Tensor) -> Tensor:
        return _pair_norms(x)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, query_offset: int | Tensor = 0, dropout_p: float = 0.0
    ) -> Tensor:
        return rope_attention(
            q, k, v, base=self.base, freqs=self.freqs, query_offset=query_offset, dropout_p=dropout_p
        )


def _check_pairs(config: ModelConfig) -> None:
    dim = config.head_dim
    if dim % 2:
        raise SeqpopeError(f"RoPE rotates pairs: model.width / model.heads must be even, it is {dim}")


def _pair_norms(x: Tensor) -> Tensor:
    """2-norms of pairs (c, c + D/2) that share a frequency: (..., D) -> (..., D/2). Rotation keeps them."""
    first, second = x.chunk(2, dim=-1)
    return torch.hypot(first, second)


YARN_ALPHA, YARN_BETA = 1.0, 32.0  # rotations over the original length (arXiv 2309.00071, section 3.2)


def yarn_frequencies(
    count: int,
    base: float,
    factor: float,
    original_length: int,
    device: torch.device | None = None,
    longest: float = 0.0,
) -> Tensor:
    """Frequencies by NTK-by-parts interpolation (arXiv 2309.00071, section 3.2), RoPE's or PoPE's.

    A frequency that turns r = original_length x theta / (2 pi) times over the original length is kept if
    r > beta, divided by the factor if r < alpha, and mixed between them by (r - alpha) / (beta - alpha). The
    ramp is linear in r as in the paper; the authors' code, and what copied it, has one linear in the index of
    the frequency.

    Args:
        count: how many, RoPE's D / 2 or PoPE's D.
        base: wavelength base of the trained model.
        factor: s, length of sequences over original length.
        original_length: L, tokens in a window of the training.
        longest: as for `truncated_frequencies`; what is 0 stays 0.

    Returns:
        (count,) fp64, radians a position, falling.
    """
    theta = truncated_frequencies(count, base, longest, device)
    rotations = original_length * theta / (2 * math.pi)
    kept = ((rotations - YARN_ALPHA) / (YARN_BETA - YARN_ALPHA)).clamp(0, 1)
    return (1 - kept) * theta / factor + kept * theta


def yarn_temperature(factor: float) -> float:
    """What queries and keys are each multiplied by, sqrt(1 / t) = 0.1 ln s + 1 (the paper's section 3.4)."""
    return 0.1 * math.log(factor) + 1


@dataclass(frozen=True)
class YarnSpectrum(Spectrum):
    """What `yarn_frequencies` gives."""

    base: float
    factor: float
    original_length: int
    longest: float

    def on(self, device: torch.device) -> Tensor:
        factor, length = self.factor, self.original_length
        return yarn_frequencies(self.count, self.base, factor, length, device, self.longest)


class YaRN(PositionEncoding):
    """RoPE for sequences beyond those it was trained on (arXiv 2309.00071), by frequencies and temperature.

    It has no weights: those of a RoPE model are read as they are, or trained on with model.yarn_factor and
    model.yarn_original_length set.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check_pairs(config)
        count, factor = config.head_dim // 2, config.yarn_factor
        length, longest = config.yarn_original_length, config.longest_wavelength
        self.freqs = YarnSpectrum(count, config.base, factor, length, longest)
        self.softmax_scale = yarn_temperature(factor) ** 2 / math.sqrt(config.head_dim)

    def theta(self) -> Tensor:
        return self.freqs.on(torch.device("cpu"))

    def magnitudes(self, x: Tensor) -> Tensor:
        """Those of RoPE: the temperature is part of the softmax's scale."""
        return _pair_norms(x)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, query_offset: int | Tensor = 0, dropout_p: float = 0.0
    ) -> Tensor:
        return rope_attention(
            q,
            k,
            v,
            freqs=self.freqs,
            softmax_scale=self.softmax_scale,
            query_offset=query_offset,
            dropout_p=dropout_p,
        )


@dataclass(frozen=True)
class NoSpectrum(Spectrum):
    """Every frequency 0."""

    def on(self, device: torch.device) -> Tensor:
        return torch.zeros(self.count, dtype=torch.float64, device=device)


class NoPE(PositionEncoding):
    """No positions (arXiv 2305.19466): only the causal mask tells order, so one layer alone sees none.

    Computed as RoPE with every frequency 0, which turns nothing, and so on the same kernels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check_pairs(config)
        self.freqs = NoSpectrum(config.head_dim // 2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, query_offset: int | Tensor = 0, dropout_p: float = 0.0
    ) -> Tensor:
        return rope_attention(q, k, v, freqs=self.freqs, query_offset=query_offset, dropout_p=dropout_p)


class ALiBi(PositionEncoding):
    """Linear biases (arXiv 2108.12409): scores lose a head's slope for each position between query and key.

    For comparisons of extrapolation.
    """

    slopes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(config.heads), persistent=False)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, query_offset: int | Tensor = 0, dropout_p: float = 0.0
    ) -> Tensor:
        return alibi_attention(q, k, v, self.slopes, query_offset=query_offset, dropout_p=dropout_p)


class PoPE(PositionEncoding):
    """Polar coordinate position embedding (arXiv 2509.10534): magnitudes say what, phases say where.

    `delta` (H, D) shifts the phase of each frequency in each head. The paper bounds it to [-2 pi, 0] by a
    clamp. A clamp has no gradient outside its range, and with delta started at 0 an independent replication
    (github PrashRangarajan/mapformer) found about 80% of the deltas stuck there. Since the score depends on
    delta through a cosine alone, leaving delta free describes the same functions without a dead zone:
    that is delta_bound "periodic", the default; "clamp" is the paper's. With "tanh" `delta` holds x of
    pi tanh(x / pi), near 0 delta itself.

    Started at 0 every key's phase is its position alone, and models carried music to ten times their training
    length; started uniformly on [-2 pi, 0], as in the paper's music and genome recipes, they collapse beyond it;
    inside it they were better on chorales by 0.009 at the mean, and on piano not told apart (RESULTS.md). "local"
    starts only those uniformly that turn fast enough for training to have seen all their angles. Under one seed
    all starts but zero come of the same draws.
    """

    longer: ClassVar[str | None] = "pope-yarn"
    delta: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.freqs = config, _spectrum(config.head_dim, config)
        delta = torch.zeros(config.heads, config.head_dim)
        if config.delta_learned:
            self.delta = nn.Parameter(delta)
        else:  # under the same name in the state dict: what is fixed may have been drawn
            self.register_buffer("delta", delta)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        config = self.config
        if config.delta_init == "zero":
            return
        delta = nn.init.uniform_(self.delta, -2 * math.pi, 0.0)
        if config.delta_init == "local":
            dim, longest = config.head_dim, config.longest_wavelength
            wavelength = 2 * math.pi / truncated_frequencies(dim, config.base, longest, delta.device)
            delta.masked_fill_(wavelength >= config.delta_window, 0.0)
        if config.delta_init == "centred" or config.delta_bound == "tanh":
            delta.add_(2 * math.pi * (delta < -math.pi))
        if config.delta_bound == "tanh":  # whose inverse is infinite at the ends
            delta.copy_(math.pi * torch.atanh((delta / math.pi).clamp(-0.999, 0.999)))

    def theta(self) -> Tensor:
        return truncated_frequencies(self.config.head_dim, self.config.base, self.config.longest_wavelength)

    def magnitudes(self, x: Tensor) -> Tensor:
        return MAGNITUDES[self.config.magnitude](x).abs()

    def bounded_delta(self) -> Tensor:
        """The phase biases as the score sees them, (H, D) radians."""
        if self.config.delta_bound == "clamp":
            return self.delta.clamp(-2 * math.pi, 0.0)
        return math.pi * torch.tanh(self.delta / math.pi) if self.config.delta_bound == "tanh" else self.delta

    def _options(self) -> dict[str, Any]:
        return {"base": self.config.base, "freqs": self.freqs, "magnitude": self.config.magnitude}

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, query_offset: int | Tensor = 0, dropout_p: float = 0.0
    ) -> Tensor:
        delta, options = self.bounded_delta(), self._options()
        return pope_attention(q, k, v, delta, query_offset=query_offset, dropout_p=dropout_p, **options)

    def attend_packed(self, qkv: Tensor, *, dropout_p: float = 0.0) -> Tensor:
        return pope_attention_packed(qkv, self.bounded_delta(), dropout_p=dropout_p, **self._options())


class PoPEYaRN(PoPE):
    """PoPE for sequences beyond those it was trained on: YaRN's frequencies and temperature, delta as it is.

    The paper reads on with PoPE as trained. But phases of slow frequencies are past the training's length what no
    delta was learned for, with PoPE as with RoPE, and YaRN (arXiv 2309.00071) asks nothing else of an encoding
    than frequencies. It has PoPE's weights, and is read or trained on as `YaRN` is.
    """

    longer = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        factor, length, longest = config.yarn_factor, config.yarn_original_length, config.longest_wavelength
        self.freqs: Spectrum = YarnSpectrum(config.head_dim, config.base, factor, length, longest)
        self.softmax_scale = yarn_temperature(factor) ** 2 / math.sqrt(config.head_dim)

    def theta(self) -> Tensor:
        return self.freqs.on(torch.device("cpu"))

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "softmax_scale": self.softmax_scale}


POSITIONS: dict[str, type[PositionEncoding]] = {
    "pope": PoPE,
    "rope": RoPE,
    "yarn": YaRN,
    "pope-yarn": PoPEYaRN,
    "nope": NoPE,
    "alibi": ALiBi,
}


def find_position(name: str) -> type[PositionEncoding]:
    """Look an encoding up by name.

    Raises:
        SeqpopeError: there is none of that name; the message lists those there are.
    """
    if name not in POSITIONS:
        raise SeqpopeError(f"unknown position encoding {name!r}: expected one of {', '.join(POSITIONS)}")
    return POSITIONS[name]
