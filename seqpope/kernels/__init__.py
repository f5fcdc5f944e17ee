"""Attention with positions inside: tensors in, tensors out, nothing of models or data."""

from seqpope.kernels.attention import pope_attention, rope_attention

__all__ = ["pope_attention", "rope_attention"]
