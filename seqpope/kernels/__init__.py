"""Attention with positions inside: tensors in, tensors out, nothing of models or data."""

from seqpope.kernels.attention import pope_attention, pope_attention_packed, rope_attention

__all__ = ["pope_attention", "pope_attention_packed", "rope_attention"]
