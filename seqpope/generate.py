"""The verb `generate`: a prompt in, chorales out, each with a JSON file that says how it was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from seqpope.checkpoint import check_fingerprint, find_checkpoint, load_checkpoint
from seqpope.domains.music.chorales.codec import Chorale, read_score, write_midi
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import write_text
from seqpope.provenance import choose_device, provenance
from seqpope.sampling import SamplingConfig, sample

SHIPPED = Path(__file__).resolve().parent / "weights" / "chorales.safetensors"


def generate_chorales(
    out: Path,
    *,
    checkpoint: Path | None = None,
    num: int = 1,
    bars: int = 16,
    prompt: Path | None = None,
    prompt_bars: int = 0,
    config: SamplingConfig | None = None,
    seed: int = 0,
    tempo: float = 80.0,
    merge_repeats: bool = True,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Path, str]]:
    """Draw chorales and write each as MIDI with its JSON sidecar.

    Args:
        out: file for one sample (its ending is .mid or .midi), folder for several.
        checkpoint: what `find_checkpoint` takes; the shipped model if None.
        bars: bars to draw, of 16 sixteenths.
        prompt: score to continue; it opens the output.
        prompt_bars: bars of the prompt to use; 0 uses all.
        seed: sample i is drawn with seed + i.
        tempo: quarter notes a minute.
        progress: called with tokens drawn and tokens in all.

    Returns:
        For each sample its file and a line that says what is in it.

    Raises:
        SeqpopeError: the checkpoint is none of chorales, the prompt cannot be read, or out is of the wrong kind.
    """
    config = config or SamplingConfig()
    if num < 1 or bars < 1 or prompt_bars < 0 or not 0 <= seed <= 2**64 - num or not 10 <= tempo <= 400:
        raise SeqpopeError(
            "expected num and bars of at least 1, prompt_bars of at least 0, seeds of 64 bits from 0 and a tempo "
            "from 10 to 400; "
            f"they are {num}, {bars}, {prompt_bars}, {seed} and {tempo}"
        )
    single = out.suffix.lower() in (".mid", ".midi")
    if single and num > 1:
        raise SeqpopeError(f"{num} samples do not fit into the one file {out}: name a folder")
    if out.suffix and not single:
        raise SeqpopeError(f"{out}: expected a .mid file or a folder, not a {out.suffix} file")
    if (single and out.is_dir()) or (not single and out.exists() and not out.is_dir()):
        raise SeqpopeError(f"{out} exists and is not a {'file' if single else 'folder'}: choose another name")
    if checkpoint is None:
        checkpoint = SHIPPED
        if not checkpoint.is_file():
            raise SeqpopeError("no model is shipped with this copy: train one and give --checkpoint RUN")
    device = choose_device(device)
    file = find_checkpoint(checkpoint)
    model, info = load_checkpoint(file, device)
    tokenizer = ChoraleTokenizer()
    check_fingerprint(info, tokenizer.fingerprint, "this version's chorale tokenizer")
    opening = torch.zeros(0, dtype=torch.long)
    per_bar = tokenizer.tokens_per_bar
    if prompt is not None:
        opening = torch.from_numpy(tokenizer.encode(read_score(prompt)).astype("int64"))
        opening = opening[: prompt_bars * per_bar or None]
        if len(opening) == 0:
            raise SeqpopeError(f"the prompt {prompt} has no music in it")
    seeds = list(range(seed, seed + num))
    drawn, nats = sample(
        model, opening, bars * per_bar, seeds=seeds, padding_id=info.padding_id, config=config, progress=progress
    )
    made = provenance(device)
    length = len(opening) + bars * per_bar
    results = []
    for index, number in enumerate(seeds):
        target = out if single else out / f"chorale-{number:04d}.mid"
        chorale = tokenizer.decode(torch.cat((opening, drawn[index])).tolist(), name=f"sample {number}")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_midi(chorale, target, tempo=tempo, merge_repeats=merge_repeats)
        mean = float(nats[index].double().mean())
        sidecar = {
            "model": {
                "checkpoint": "shipped" if file == SHIPPED else str(file),
                "position": info.position,
                "dataset": info.dataset,
                "fingerprint": info.fingerprint,
                "trained": info.trained,
            },
            "settings": {
                **asdict(config),
                "bars": bars,
                "prompt": str(prompt) if prompt else None,
                "prompt_tokens": len(opening),
                "tempo": tempo,
                "merge_repeats": merge_repeats,
                "samples_in_batch": num,
            },
            "seed": number,
            "tokens": bars * per_bar,
            "nats_per_token": mean,
            "beyond_training_length": length > info.length,
            **made,
        }
        write_text(target.with_suffix(".json"), json.dumps(sidecar, indent=1) + "\n")
        results.append((target, describe(chorale, mean, bars)))
    return results


def describe(chorale: Chorale, nats: float, bars: int) -> str:
    """One line: length, range of each voice in MIDI pitches, NLL of what was drawn."""
    voices = []
    for name, voice in zip(("S", "A", "T", "B"), chorale.pitches.T, strict=True):
        sounding = voice[voice >= 0]
        voices.append(f"{name} {sounding.min()}-{sounding.max()}" if len(sounding) else f"{name} silent")
    return f"{len(chorale.pitches)} steps ({bars} bars drawn), {', '.join(voices)}, {nats:.3f} nats/token"
