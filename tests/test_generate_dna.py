"""DNA out of a model: files, what stands in them, prompts, rules; judged by Biopython."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
import stores  # noqa: F401 - one thread for models this small
import torch
from Bio import Restriction, SeqIO
from Bio.Seq import Seq
from Bio.SeqUtils import gc_fraction

from seqpope.checkpoint import SHIPPED, CheckpointInfo, load_checkpoint, save_checkpoint
from seqpope.domains.base import find_tokenizer
from seqpope.domains.genome.rules import DnaRules
from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.generate.dna import DnaOutput, generate_dna, load_model, make_rules
from seqpope.generate.draw import Draw
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.nll import token_nats

SHAPE = {"width": 16, "layers": 1, "heads": 2}
KINDS = {"six": SixMerTokenizer(), "base": BaseTokenizer(), "music": ChoraleTokenizer()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, tokenizer in KINDS.items():
        torch.manual_seed(0)
        model = Transformer(tokenizer.vocabulary_size, "pope", ModelConfig(**SHAPE))
        for parameter in model.parameters():
            parameter.data *= 3  # tokens differ in how likely they are
        info = CheckpointInfo(
            domain="music" if name == "music" else "genome", dataset="made up", position="pope",
            vocabulary_size=tokenizer.vocabulary_size, padding_id=tokenizer.padding_id, length=32, model=SHAPE,
            tokenizer=tokenizer.specification, fingerprint=tokenizer.fingerprint,
        )  # fmt: skip
        save_checkpoint(folder / f"{name}.safetensors", model, info)
    return {name: folder / f"{name}.safetensors" for name in KINDS}


def draw_dna(out, checkpoint, *, num=1, seed=0, batch_size=16, particles=1, **options):
    draw = Draw(num=num, seed=seed, batch_size=batch_size, particles=particles)
    return generate_dna(DnaOutput(out), draw, checkpoint=checkpoint, **options)


def sequences(path):
    return [str(record.seq) for record in SeqIO.parse(path, "fasta")]


@pytest.mark.parametrize("kind", ["six", "base"])
@pytest.mark.parametrize("bases", [1, 5, 6, 7, 61])
@pytest.mark.parametrize("prompt", [None, "A", "ACGTACG", "ACGTACGTACGT"])
def test_as_many_bases_as_asked_for_after_the_prompt(tmp_path, models, kind, bases, prompt):
    draw_dna(tmp_path / "a.fa", models[kind], bases=bases, prompt=prompt, num=2)
    for sequence in sequences(tmp_path / "a.fa"):
        assert sequence.startswith(prompt or "")
        assert len(sequence) == bases + len(prompt or "")
        assert set(sequence) <= set("ACGT")


class TestFiles:
    def test_one_file_holds_all_and_one_sidecar(self, tmp_path, models):
        results = draw_dna(tmp_path / "a.fa", models["six"], bases=50, num=3, seed=7, prompt="ACGT")
        records = list(SeqIO.parse(tmp_path / "a.fa", "fasta"))
        assert [record.id for record in records] == ["dna-0007", "dna-0008", "dna-0009"]
        sidecar = json.loads((tmp_path / "a.json").read_text())
        digest = hashlib.sha256(models["six"].read_bytes()).hexdigest()
        for record, own, (file, line) in zip(records, sidecar["samples"], results, strict=True):
            fields = dict(word.split("=") for word in record.description.split()[1:])
            assert fields["seed"] == str(own["seed"]) == record.id[-1]
            assert fields["length"] == "54"
            assert fields["prompt"] == "4"
            assert float(fields["gc"]) == pytest.approx(gc_fraction(record.seq), abs=1e-4)
            assert own["gc_drawn"] == pytest.approx(gc_fraction(record.seq[4:]))
            assert float(fields["nats_per_base"]) == pytest.approx(own["nats_per_base"], abs=1e-4)
            assert digest.startswith(fields["model"])
            assert SixMerTokenizer().fingerprint.startswith(fields["tokens"])
            assert file == tmp_path / "a.fa"
            assert line.startswith(f"{record.id}  54 bases (50 drawn), GC ")
        assert sidecar["weights_sha256"] == digest
        assert sidecar["nats_per_token"] == pytest.approx(
            np.mean([s["nats_per_token"] for s in sidecar["samples"]])
        )
        assert sorted(tmp_path.iterdir()) == [tmp_path / "a.fa", tmp_path / "a.json"]

    def test_a_folder_holds_one_each(self, tmp_path, models):
        results = draw_dna(tmp_path / "out", models["six"], bases=50, num=2)
        names = sorted(file.name for file in (tmp_path / "out").iterdir())
        assert names == ["dna-0000.fa", "dna-0000.json", "dna-0001.fa", "dna-0001.json"]
        assert [file for file, _ in results] == [tmp_path / "out" / name for name in names[::2]]
        sidecar = json.loads((tmp_path / "out" / "dna-0001.json").read_text())
        assert sidecar["seed"] == 1
        assert sidecar["bases"] == 50
        draw_dna(tmp_path / "a.fa", models["six"], bases=50, num=2)
        both = [sequences(tmp_path / "out" / name)[0] for name in names[::2]]
        assert both == sequences(tmp_path / "a.fa")

    def test_what_is_there_is_spared(self, tmp_path, models):
        (tmp_path / "p.fa").write_text(">p\nACGT\n")
        with pytest.raises(SeqpopeError, match="is what is read"):
            draw_dna(tmp_path / "p.fa", models["six"], bases=6, prompt=str(tmp_path / "p.fa"))
        with pytest.raises(SeqpopeError, match=r"expected a folder or a file that ends in \.fa, "):
            draw_dna(tmp_path / "a.mid", models["six"], bases=6)
        assert (tmp_path / "p.fa").read_text() == ">p\nACGT\n"

    def test_a_seed_draws_the_same_beside_others(self, tmp_path, models):
        draw_dna(tmp_path / "a.fa", models["six"], bases=100, num=5, rules=DnaRules(gc=(0.4, 0.6)))
        draw_dna(tmp_path / "b.fa", models["six"], bases=100, seed=3, rules=DnaRules(gc=(0.4, 0.6)))
        assert sequences(tmp_path / "a.fa")[3] == sequences(tmp_path / "b.fa")[0]


@torch.no_grad()
def test_nats_are_the_models_own(tmp_path, models):
    """Of the six-mers after the prompt's, in its phase, whatever remains of the prompt at its start left out."""
    prompt, tokenizer = "GTACCATTG", KINDS["six"]
    draw_dna(tmp_path / "a.fa", models["six"], bases=60, prompt=prompt)
    [sequence] = sequences(tmp_path / "a.fa")
    sidecar = json.loads((tmp_path / "a.json").read_text())
    model, _ = load_checkpoint(models["six"])
    ids = torch.tensor([tokenizer.padding_id, *tokenizer.encode(sequence[3:]).tolist()])
    assert len(ids) == 1 + 1 + 10
    nats = -model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])[1:].sum()
    assert sidecar["nats_per_base"] * 60 == pytest.approx(float(nats), rel=1e-4)
    assert sidecar["settings"]["prompt_bases_unseen"] == 3


class TestRules:
    """By other means than the constraint's own."""

    @pytest.mark.parametrize("kind", ["six", "base"])
    def test_all_at_once(self, tmp_path, models, kind):
        rules = make_rules(gc="0.4,0.6", gc_window=50, forbid="EcoRI,BsaI,GGATCC", open_frame=2)
        draw_dna(tmp_path / "a.fa", models[kind], bases=200, num=8, prompt="ACGTGAATT", rules=rules)
        for sequence in sequences(tmp_path / "a.fa"):
            seq = Seq(sequence)
            assert not any(
                enzyme.search(seq) for enzyme in (Restriction.EcoRI, Restriction.BsaI, Restriction.BamHI)
            )
            assert 0.4 <= gc_fraction(seq) <= 0.6
            assert all(0.4 <= gc_fraction(seq[i : i + 50]) <= 0.6 for i in range(len(seq) - 49))
            frame = seq[2:]
            assert "*" not in frame[: len(frame) // 3 * 3].translate()

    def test_no_stop(self, tmp_path, models):
        draw_dna(tmp_path / "a.fa", models["six"], bases=200, num=8, rules=make_rules(no_stop=True))
        for sequence in sequences(tmp_path / "a.fa"):
            for frame in range(3):
                whole = sequence[frame : frame + (len(sequence) - frame) // 3 * 3]
                assert "*" not in Seq(whole).translate()

    def test_a_prompt_that_is_not_judged(self, tmp_path, models):
        rules = make_rules(forbid="EcoRI", judge_prompt=False)
        draw_dna(tmp_path / "a.fa", models["six"], bases=50, num=4, prompt="NRGAATTCGGAATT", rules=rules)
        for sequence in sequences(tmp_path / "a.fa"):
            assert Restriction.EcoRI.search(Seq(sequence[8:])) == []
        settings = json.loads((tmp_path / "a.json").read_text())["settings"]
        assert settings["prompt_codes_read_as_n"] == {"R": 1}

    def test_n_may_be_kept(self, tmp_path, models):
        draw_dna(tmp_path / "a.fa", models["base"], bases=200, prompt="ANN", rules=make_rules(keep_n=True))
        [sequence] = sequences(tmp_path / "a.fa")
        assert len(sequence) == 203
        assert "N" in sequence[3:]
        draw_dna(tmp_path / "b.fa", models["six"], bases=90, num=3, rules=make_rules(keep_n=True))
        assert [len(text) for text in sequences(tmp_path / "b.fa")] == [90] * 3

    def test_letters_anywhere_may_be_drawn(self, tmp_path, models):
        draw_dna(tmp_path / "a.fa", models["six"], bases=90, num=3, letters_anywhere=True)
        assert [len(text) for text in sequences(tmp_path / "a.fa")] == [90] * 3

    def test_particles(self, tmp_path, models):
        draw_dna(tmp_path / "a.fa", models["six"], bases=60, num=2, particles=8, rules=make_rules(gc="0.2,0.3"))
        assert all(0.2 <= gc_fraction(text) <= 0.3 for text in sequences(tmp_path / "a.fa"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "ACGNA"}, r"the prompt has 'N' at position 3 .*cut it there.*--keep-n.*--judge-prompt false"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "MKTAYIAKQR"}, "'I' at position 5 .*protein"),
        (
            {"prompt": "GGAATTCA", "rules": {"forbid": "EcoRI"}},
            r"the prompt already holds .*EcoRI.* at position 1",
        ),
        (
            {"rules": {"gc": "0.9,1", "forbid": "GG,GC,CG"}},
            "gc 0.9-1 over 60 bases.*need 54 to 60 G and C, but under .* GG, GC, CG they can have 0 to 30",
        ),
        ({"bases": 0}, "bases must be from 1"),
        ({"checkpoint": "music"}, r"was trained on tokens 2387e5d57366 \(music, made up\).*no tokens of DNA"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, models, options, message):
    options = {"bases": 60, "checkpoint": "six", **options, "rules": make_rules(**options.get("rules", {}))}
    checkpoint = options.pop("checkpoint")
    with pytest.raises(SeqpopeError, match=message):
        draw_dna(tmp_path / "a.fa", models[checkpoint], **options)
    assert list(tmp_path.iterdir()) == []


class TestShippedModel:
    """What `generate --domain genome` and `score` do with no checkpoint given."""

    def test_draws_dna_and_says_which_model_did(self, tmp_path, capsys):
        draw_dna(tmp_path / "a.fa", None, bases=600)
        told = json.loads((tmp_path / "a.json").read_text())
        assert told["model"]["checkpoint"] == "shipped: genome"
        assert told["model"]["dataset"] == "grch38"
        assert (
            "the genome model that comes with seqpope is taken (pope, trained on grch38" in capsys.readouterr().err
        )

    def test_knows_a_human_repeat_from_its_shuffle(self):
        # The consensus of AluY begins so; a tenth of the genome is Alu.
        alu = (
            "GGCCGGGCGCGGTGGCTCACGCCTGTAATCCCAGCACTTTGGGAGGCCGAGGCGGGCGGATCACGAGGTCAGGAGATCGAGACCATCCCGGCTAAAACGG"
        )
        shuffled = "".join(np.random.default_rng(0).permutation(list(alu)))
        model, tokenizer = load_model(None, "cpu")

        def nats(bases):
            ids = torch.from_numpy(tokenizer.encode(bases).astype(np.int64))[None]
            with torch.no_grad():
                logits = model.transformer(torch.cat((torch.zeros_like(ids[:, :1]), ids[:, :-1]), 1))
            return float(token_nats(logits, ids).mean()) / 6

        assert nats(alu) < 1 < math.log(4) < nats(shuffled)

    def test_a_copy_without_it_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setitem(SHIPPED, "genome", tmp_path / "none.safetensors")
        with pytest.raises(SeqpopeError, match=r"no genome model comes with this copy.*train one"):
            draw_dna(tmp_path / "a.fa", None, bases=60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gc": "40"}, "such as 0.4,0.6; it is '40'"),
        ({"gc": "a,b"}, "it is 'a,b'"),
        ({"gc": "40,60"}, r"write \(0.4, 0.6\)"),
        ({"gc_window": 100}, "give gc as well"),
        ({"open_frame": 3}, "open_frame must be 0, 1, 2"),
        ({"gc": "0.4,0.6", "keep_n": True}, "leave out one of the two"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(SeqpopeError, match=message):
        make_rules(**options)


def test_tokenizers_are_found_by_fingerprint():
    assert isinstance(find_tokenizer("dna", SixMerTokenizer().fingerprint), SixMerTokenizer)
    assert isinstance(find_tokenizer("dna", BaseTokenizer().fingerprint), BaseTokenizer)
    assert find_tokenizer("dna", ChoraleTokenizer().fingerprint) is None
