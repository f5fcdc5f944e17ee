from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seqpope.kernels import reference
from seqpope.model.cache import KeyValueCache
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS
from seqpope.model.transformer import Transformer

VOCABULARY = 11


def make_model(position, seed=0, **changes):
    torch.manual_seed(seed)
    model = Transformer(
        VOCABULARY, position, ModelConfig(**{"width": 24, "layers": 3, "heads": 2, **changes})
    ).eval()
    with torch.no_grad():  # at its start a model hardly attends: make attention sharp enough to matter
        for block in model.blocks:
            block.attention.qkv.weight *= 20
            block.attention.out.weight *= 10
    return model


def make_ids(batch, length, seed=0):
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def normed(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * weight


@pytest.mark.parametrize("position", ["pope", "rope"])
@torch.no_grad()
def test_forward_written_out(position):
    """Every operation once more from the weights alone, so that no norm, head or activation can change unseen."""
    model, ids = make_model(position, delta_init="uniform"), make_ids(2, 9)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start at one, which hides whether they are used
            parameter.uniform_(0.5, 2)
    weights = model.state_dict()
    x = weights["embedding.weight"][ids]
    for layer in range(3):
        own = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
        read = normed(x, own["norm_attention.weight"])
        heads = []
        for head in range(2):
            # Rows of qkv: all heads' queries, then all keys, then all values; 12 a head.
            q, k, v = (
                (read @ own["attention.qkv.weight"][part * 24 + head * 12 :][:12].T)[:, None] for part in range(3)
            )
            if position == "pope":
                scores = reference.pope_scores(q, k, own["attention.position.delta"][head : head + 1])
            else:
                scores = reference.rope_scores(q, k)
            past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()[None]
            out = reference.softmax_attention(scores, v, visible=past, softmax_scale=12**-0.5)
            heads.append(out[:, 0])
        x = x + torch.cat(heads, -1) @ own["attention.out.weight"].T
        hidden = normed(x, own["norm_mlp.weight"]) @ own["mlp_in.weight"].T
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ own["mlp_out.weight"].T
    expected = normed(x, weights["norm.weight"]) @ weights["embedding.weight"].T
    torch.testing.assert_close(model(ids), expected, atol=2e-5, rtol=2e-5)


# Settings that only PoPE reads, and one that all who turn do.
OF_POPE = [
    {"magnitude": "relu", "delta_init": "uniform"},
    {"magnitude": "none", "delta_learned": False},
    {"delta_init": "local", "delta_window": 50, "delta_bound": "tanh"},
    {"delta_init": "centred", "delta_learned": False},
]
CHANGES = [
    *((position, {"delta_init": init}) for position in POSITIONS for init in ("zero", "uniform")),
    *(("pope", changes) for changes in OF_POPE),
    *((position, {"longest_wavelength": 40.0}) for position in ("pope", "rope", "yarn")),
]


@pytest.mark.parametrize("sizes", [(17,), (1,) * 17, (5, 1, 1, 7, 2, 1), (16, 1)])
@pytest.mark.parametrize(("position", "changes"), CHANGES)
@torch.no_grad()
def test_reading_in_pieces_is_reading_at_once(position, sizes, changes):
    model, ids = make_model(position, **changes), make_ids(3, 17)
    full = model(ids)
    cache = KeyValueCache(model.config, 3, 20)  # longer than what is read
    pieces = [model(piece, cache) for piece in ids.split(list(sizes), dim=1)]
    assert cache.length == 17
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=2e-5, rtol=2e-5)
    # The test has power: the same pieces without their past give something else.
    if len(sizes) > 1:
        alone = torch.cat([model(piece) for piece in ids.split(list(sizes), dim=1)], 1)
        assert (alone - full).abs().max() > 1e-2


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_last_only_is_the_last(position):
    model, ids = make_model(position), make_ids(2, 9)
    torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


def test_positions_asked_for_twice_or_for_other_rows_are_refused():
    model, ids = make_model("pope"), make_ids(2, 9)
    for at, last_only in ((torch.tensor([[1], [2]]), True), (torch.tensor([[1]]), False)):
        with pytest.raises(ValueError, match="expected `at` of 2 rows without last_only"):
            model(ids, at=at, last_only=last_only)


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_asked_for_are_those_of_all_and_so_are_gradients(position):
    ids, at = make_ids(3, 9), torch.tensor([[0, 8], [5, 5], [3, 1]])
    found = []
    for some in (False, True):
        model = make_model(position)
        logits = model(ids, at=at) if some else model(ids).gather(1, at[:, :, None].expand(-1, -1, VOCABULARY))
        assert logits.shape == (3, 2, VOCABULARY)
        (logits**2).sum().backward()
        found.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (all_of_them, expected), (those, gradients) = found
    torch.testing.assert_close(those, all_of_them, atol=2e-5, rtol=2e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_a_full_cache_says_so_and_keeps_what_it_has():
    model, ids = make_model("pope"), make_ids(1, 6)
    cache = KeyValueCache(model.config, 1, 5)
    model(ids[:, :4], cache)
    with pytest.raises(ValueError, match="holds 5 positions, 6 are needed"):
        model(ids[:, 4:], cache)
    assert cache.length == 4
    torch.testing.assert_close(model(ids[:, 4:5], cache), model(ids[:, :5])[:, 4:], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_right_padding_and_the_future_change_no_earlier_logit(position):
    model, ids = make_model(position), make_ids(2, 12)
    short = model(ids)
    for filler in (torch.zeros(2, 30, dtype=torch.long), make_ids(2, 30, seed=9)):
        torch.testing.assert_close(model(torch.cat((ids, filler), 1))[:, :12], short, atol=2e-5, rtol=2e-5)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    after = model(changed)
    torch.testing.assert_close(after[:, :7], short[:, :7], atol=2e-5, rtol=2e-5)
    assert ((after - short)[:, 7:].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_rows_of_a_batch_do_not_meet(position):
    model, ids = make_model(position), make_ids(4, 10)
    torch.testing.assert_close(model(ids)[2:3], model(ids[2:3]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("position", "layers"), [*((p, 1) for p in POSITIONS if p != "nope"), ("nope", 2)])
@torch.no_grad()
def test_order_matters(position, layers):
    """Only attention knows positions, so it must: the same tokens in another order end in other logits.

    Without positions only the causal mask tells order, which takes two layers.
    """
    model, ids = make_model(position, layers=layers), make_ids(1, 40)
    other = torch.cat((ids[:, torch.randperm(39, generator=torch.Generator().manual_seed(1))], ids[:, -1:]), 1)
    assert (model(ids)[:, -1] - model(other)[:, -1]).abs().max() > 1e-3
    if position == "nope":
        one = make_model(position, layers=1)
        torch.testing.assert_close(one(ids)[:, -1], one(other)[:, -1])


@pytest.mark.parametrize(("position", "changes"), [each for each in CHANGES if each[0] != "rope"])
def test_twins_share_every_weight_but_what_positions_learn(position, changes):
    config = ModelConfig(width=16, layers=2, heads=2, **changes)
    twins = []
    for name in ("rope", position):
        torch.manual_seed(3)
        twins.append(Transformer(VOCABULARY, name, config).state_dict())
    base, other = twins
    own = set(other) - set(base)
    assert all(".attention.position." in name for name in own)
    assert not any(".attention.position." in name for name in base)
    assert set(base) <= set(other)
    for name in base:
        assert torch.equal(base[name], other[name]), name
    if position == "pope":
        assert own == {f"blocks.{layer}.attention.position.delta" for layer in range(2)}
        deltas = [other[name] for name in sorted(own)]
        assert all(bool(delta.any()) == (config.delta_init != "zero") for delta in deltas)
        assert config.delta_init == "zero" or not torch.equal(*deltas)


def test_seeds_differ():
    assert not torch.equal(make_model("pope", 0).embedding.weight, make_model("pope", 1).embedding.weight)


@pytest.mark.parametrize(("position", "extra"), [("rope", 0), ("pope", 3 * 24)])
def test_parameter_count(position, extra):
    """Embedding (tied with the output), per block 4 C^2 of attention, 2 r C^2 of MLP, 2 norms, and a last norm."""
    model = make_model(position, mlp_ratio=2.5)
    expected = VOCABULARY * 24 + 3 * (4 * 24 * 24 + 2 * 24 * 60 + 2 * 24) + 24 + extra
    assert sum(p.numel() for p in model.parameters()) == expected


@torch.no_grad()
def test_embedding_and_output_are_tied():
    model = make_model("rope")
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids)
    model.embedding.weight[7] *= 2  # a token that is not read: only the output sees it
    after = model(ids)
    torch.testing.assert_close(after[..., 7], 2 * before[..., 7])
    others = [i for i in range(VOCABULARY) if i != 7]
    assert torch.equal(after[..., others], before[..., others])


def test_initial_spread():
    torch.manual_seed(0)
    model = Transformer(500, "pope", ModelConfig(width=128, layers=4, heads=4))
    residual = 0.02 / math.sqrt(8)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp_out.weight")):
            assert float(parameter.detach().std()) == pytest.approx(residual, rel=0.05), name
        elif parameter.dim() == 2 and "delta" not in name:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name


@pytest.mark.parametrize("changes", OF_POPE)
def test_twins_of_other_settings_share_every_weight_too(changes):
    """PoPE against PoPE: an ablation's run is paired by seed with the whole model's."""
    plain, other = make_model("pope").state_dict(), make_model("pope", **changes).state_dict()
    assert list(plain) == list(other)
    for name in plain:
        assert name.endswith("delta") or torch.equal(plain[name], other[name]), name


@pytest.mark.parametrize(("position", "changes"), CHANGES)
def test_every_parameter_gets_a_gradient(position, changes):
    model = make_model(position, **changes).train()
    model(make_ids(2, 8)).logsumexp(-1).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("position", POSITIONS)
def test_dropout_is_of_training_alone(position):
    ids = make_ids(2, 8)
    for kind in ("dropout", "attention_dropout"):
        model = make_model(position, **{kind: 0.5})
        quiet = make_model(position)
        assert torch.equal(model(ids), quiet(ids))
        model.train()
        torch.manual_seed(0)
        first = model(ids)
        assert (first - quiet(ids)).abs().max() > 1e-3, kind
        torch.manual_seed(0)
        assert torch.equal(model(ids), first)


@pytest.mark.parametrize("silent", [["attention.out", "mlp_out"], ["mlp_out"], ["attention.out"]])
def test_dropout_is_in_all_three_places(silent):
    """On embeddings, on attention's output and on the MLP's; what is not looked at is silent or sure."""
    model, ids = make_model("rope", dropout=0.5).train(), make_ids(2, 8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.removesuffix(".weight").endswith(tuple(silent)):
                parameter.zero_()
    if len(silent) == 1:
        model.dropout.p = 0.0
    torch.manual_seed(0)
    assert (model(ids) - model(ids)).abs().max() > 1e-3


@pytest.mark.parametrize("position", POSITIONS)
def test_bf16_autocast_is_near_fp32(position):
    torch.manual_seed(0)
    model = Transformer(VOCABULARY, position, ModelConfig(width=32, layers=2, heads=2, delta_init="uniform"))
    ids = make_ids(2, 64)
    exact = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(ids)
        rough.float().logsumexp(-1).mean().backward()
    assert rough.dtype == torch.bfloat16
    assert not torch.equal(rough.float(), exact)
    assert (rough.float() - exact).norm() / exact.norm() < 0.02
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_cache_holds_keys_and_values_and_no_more(dtype):
    """Keys go in as projected, D wide, for every encoding: PoPE's doubled width never reaches the cache."""
    config = ModelConfig(width=24, layers=3, heads=2)
    cache = KeyValueCache(config, 2, 9, dtype=dtype)
    size = sum(x.numel() * x.element_size() for x in vars(cache).values() if isinstance(x, torch.Tensor))
    assert size == 2 * 3 * 2 * 9 * 24 * dtype.itemsize  # keys and values, layers, rows, positions, width
    for position in POSITIONS:
        model, cache = make_model(position), KeyValueCache(config, 2, 9)
        model(make_ids(2, 9), cache)
        assert cache.keys.shape == cache.values.shape == (3, 2, 2, 9, 12)
        first = torch.nn.functional.rms_norm(model.embedding(make_ids(2, 9)), (24,))
        keys = first @ model.blocks[0].attention.qkv.weight[24:48].T  # without a trace of position
        torch.testing.assert_close(cache.keys[0], keys.view(2, 9, 2, 12).transpose(1, 2))


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_bf16_cache(position):
    """A cache in half precision is near the full one, and decoding under autocast runs."""
    model, ids = make_model(position), make_ids(2, 12)
    full = model(ids)
    cache = KeyValueCache(model.config, 2, 12, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pieces = torch.cat([model(piece, cache) for piece in ids.split([7, 1, 4], 1)], 1)
    assert (pieces.float() - full).norm() / full.norm() < 0.1


def one_layer(position):
    torch.manual_seed(3)
    model = Transformer(11, position, ModelConfig(width=24, layers=1, heads=2)).eval()
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight *= 30
        model.embedding.weight *= 8
    return model


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_moved_cache_is_that_of_the_later_tokens(position):
    """Of one layer, keys say nothing of where they stood: what is left is as if only that had been read."""
    model, ids = one_layer(position), make_ids(3, 20, 11)
    cache = KeyValueCache(model.config, 3, 30)
    model(ids[:, :12], cache)
    cache.keep_last(5)
    assert cache.length == 5
    got = model(ids[:, 12:], cache)
    torch.testing.assert_close(got, model(ids[:, 7:])[:, 5:], atol=1e-4, rtol=1e-4)
    cache.keep_last(99)
    assert cache.length == 13


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_rows_of_different_lengths(position):
    """Padding behind a shorter row is read by nobody; later tokens take its place; then all of it may be moved."""
    model, ids = make_model(position), make_ids(4, 16)
    ends = torch.tensor([6, 1, 3, 6])
    cache = KeyValueCache(model.config, 4, 30)
    padded = torch.where(torch.arange(6) < ends[:, None], ids[:, :6], 0)
    first = model(padded, cache, last_only=True, ends=ends)
    later = model(ids[:, 6:9], cache)
    for row, end in enumerate(ends.tolist()):
        alone = model(torch.cat((ids[row, :end], ids[row, 6:9]))[None])
        torch.testing.assert_close(first[row], alone[0, end - 1 : end], atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(later[row], alone[0, end:], atol=2e-5, rtol=2e-5)
    assert cache.lengths.tolist() == [9, 4, 6, 9]
    cache.select(torch.tensor([2, 2, 1, 0]))
    assert cache.lengths.tolist() == [6, 6, 4, 9]
    after = model(ids[:1, 9:10].expand(4, 1), cache)[:, 0]
    torch.testing.assert_close(after[0], after[1])
    alone = model(torch.cat((ids[2, :3], ids[2, 6:9], ids[0, 9:10]))[None])[0, -1]
    torch.testing.assert_close(after[0], alone, atol=2e-5, rtol=2e-5)


def test_only_what_is_filled_of_rows_that_change_is_copied():
    config = ModelConfig(width=12, heads=2, layers=3)
    cache, copied = KeyValueCache(config, 4, 9), []
    for each in (cache.keys, cache.values):
        each.normal_()
    cache.length = 5
    expected = [
        torch.cat((each[:, [0, 0, 2, 1], :, :5], each[..., 5:, :]), 3) for each in (cache.keys, cache.values)
    ]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            if function is torch.ops.aten.index.Tensor and out.is_floating_point():
                copied.append(tuple(out.shape))
            return out

    with Watch():
        cache.select(torch.tensor([0, 0, 2, 1]))
    assert copied == [(3, 2, 2, 5, 6)] * 2
    assert torch.equal(cache.keys, expected[0])
    assert torch.equal(cache.values, expected[1])


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_rows_of_different_lengths_are_moved_too(position):
    model, ids = one_layer(position), make_ids(2, 12, 11)
    cache = KeyValueCache(model.config, 2, 30)
    model(ids[:, :9], cache, ends=torch.tensor([9, 2]))
    cache.keep_last(4)
    assert (cache.length, cache.lengths.tolist()) == (4, [4, 2])
    got = model(ids[:, 9:], cache)
    torch.testing.assert_close(got[0], model(ids[:1, 5:])[0, 4:], atol=1e-4, rtol=1e-4)
    alone = model(torch.cat((ids[1, :2], ids[1, 9:]))[None])[0, 2:]
    torch.testing.assert_close(got[1], alone, atol=1e-4, rtol=1e-4)


def test_rows_that_turn_out_alike_are_one_length_again():
    cache = KeyValueCache(ModelConfig(width=8, layers=1, heads=2), 2, 9)
    cache.cut(torch.tensor([3, 3]))
    assert cache.position == 3
    cache.cut(torch.tensor([3, 2]))
    assert cache.position.tolist() == [3, 2]
