"""A decoder-only transformer: pre-norm, RMSNorm, GELU MLP, tied embedding. Only attention knows positions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from seqpope.errors import SeqpopeError
from seqpope.model.cache import KeyValueCache
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS, PositionEncoding, find_position


def _picked(x: Tensor, at: Tensor | None) -> Tensor:
    """Of x (B, L, C) the positions `at` (B, K), (B, K, C); all if None."""
    return x if at is None else x.gather(1, at[:, :, None].expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    """Multi-head causal self-attention; the position encoding does the attending."""

    def __init__(self, config: ModelConfig, position: str, layer: int) -> None:
        super().__init__()
        self.heads, self.layer, self.dropout = config.heads, layer, config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.position = find_position(position)(config)

    def forward(self, x: Tensor, cache: KeyValueCache | None, at: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        dropout_p = self.dropout if self.training else 0.0
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        if cache is None:
            y = self.position.attend_packed(qkv, dropout_p=dropout_p)  # (B, H, L, D)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, D)
            k, v = cache.extend(self.layer, k, v)  # (B, H, cache.length + L, D), or the whole cache if settled
            y = self.position.attend(q.to(k.dtype), k, v, query_offset=cache.position, dropout_p=dropout_p)
            y = y.to(x.dtype)
        return self.out(_picked(y.transpose(1, 2).reshape(batch, length, width), at))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); of some positions alone, if `at` (B, K) says which."""

    def __init__(self, config: ModelConfig, position: str, layer: int) -> None:
        super().__init__()
        hidden = int(config.mlp_ratio * config.width)
        self.norm_attention = nn.RMSNorm(config.width)
        self.attention = Attention(config, position, layer)
        self.norm_mlp = nn.RMSNorm(config.width)
        self.mlp_in = nn.Linear(config.width, hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None, at: Tensor | None = None) -> Tensor:
        x = _picked(x, at) + self.dropout(self.attention(self.norm_attention(x), cache, at))
        return x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x)))))


class Transformer(nn.Module):
    """Token ids to next-token logits.

    Two transformers of one config that differ in `position` are twins: identical in all else, down to the
    initial weights that they share under one seed.
    """

    def __init__(self, vocabulary_size: int, position: str, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.position, self.vocabulary_size = config, position, vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, position, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02), divided by sqrt(2 layers) where a sublayer writes to the residual stream (GPT-2).

        What belongs to a position encoding is drawn last, so that twins share every other weight.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp_out.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.layers))
        for module in self.modules():
            if isinstance(module, PositionEncoding):
                module.reset_parameters()

    def forward(
        self,
        ids: Tensor,
        cache: KeyValueCache | None = None,
        *,
        at: Tensor | None = None,
        last_only: bool = False,
        ends: Tensor | None = None,
        head: bool = True,
    ) -> Tensor:
        """Logits of the token after each of `ids`.

        Args:
            ids: (B, L) token ids; they stand behind what the cache holds.
            cache: keys and values of earlier calls; L positions are added to it.
            at: (B, K) positions within `ids`: return the logits after those alone, (B, K, V). The last block's
                output projection and MLP are computed for those alone too; its attention is still of all.
            last_only: the same for the last token, (B, 1, V); not together with `at`.
            ends: (B,) how many of the ids are each sequence's own, the rest being padding; then the last token is
                the last of those, and the cache forgets the padding.
            head: False returns the states that `logits` takes, so that it need not be asked for all of them.

        Returns:
            (B, L, V), or states (B, L, C); of fewer positions if some are asked for.

        Raises:
            ValueError: `at` stands beside last_only, or has other than B rows.
        """
        if at is not None and (last_only or len(at) != len(ids)):
            raise ValueError(f"expected `at` of {len(ids)} rows without last_only, {tuple(at.shape)} came")
        if last_only and ids.shape[1] > 1:
            at = ids.new_full((len(ids), 1), ids.shape[1] - 1) if ends is None else ends[:, None] - 1
        x = self.dropout(self.embedding(ids))  # (B, L, C)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, cache)
        x = last(x, cache, at)
        if cache is not None:
            before = cache.position
            cache.advance(ids.shape[1])
            if ends is not None:
                cache.cut(before + ends)
        return self.logits(x) if head else x

    def logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of the last block's states (..., C)."""
        return F.linear(self.norm(states), self.embedding.weight)


def with_yarn(model: Transformer, factor: float, original_length: int) -> Transformer:
    """The same weights in a model for sequences `factor` times as long as those of its training; a copy.

    Args:
        factor: length of the sequences over original_length, at least 1.
        original_length: tokens in a training window.

    Raises:
        SeqpopeError: no encoding reads this one's weights in longer sequences, or a number is below 1.
    """
    longer = find_position(model.position).longer
    if longer is None:
        able = ", ".join(name for name, encoding in POSITIONS.items() if encoding.longer)
        raise SeqpopeError(f"YaRN extends models of {able}: this one has {model.position}, score it without")
    config = replace(model.config, yarn_factor=factor, yarn_original_length=original_length)
    extended = copy.deepcopy(model)
    extended.config, extended.position = config, longer
    for module in extended.modules():
        if isinstance(module, Attention):
            position = find_position(longer)(config).to(model.embedding.weight.device)
            position.load_state_dict(module.position.state_dict())
            module.position = position
    return extended
