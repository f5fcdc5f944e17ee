"""Attention with positions inside: tensors in, tensors out, nothing of models or data."""

from seqpope.kernels.alibi import alibi_attention, alibi_slopes
from seqpope.kernels.attention import pope_attention, pope_attention_packed, rope_attention
from seqpope.kernels.reference import MAGNITUDES
from seqpope.kernels.rotation import Spectrum, frequencies

__all__ = [
    "MAGNITUDES",
    "Spectrum",
    "alibi_attention",
    "alibi_slopes",
    "frequencies",
    "pope_attention",
    "pope_attention_packed",
    "rope_attention",
]
