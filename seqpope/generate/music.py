"""What chorales and piano share: MIDI made to sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seqpope.output import Output


@dataclass(frozen=True)
class MusicOutput(Output):
    """Where music goes, WAV among its formats; `soundfont` is for that, the system's own if None."""

    soundfont: Path | None = None

    def check(self, num: int) -> None:
        super().check(num)
        if "wav" in self.wanted:
            from seqpope.domains.music.audio import find_fluidsynth, find_soundfont

            find_fluidsynth()
            find_soundfont(self.soundfont)

    def sound(self, file: Path, write_midi: Callable[[Path], object]) -> None:
        """Write a WAV file of the MIDI that `write_midi` writes to a path; it is left beside."""
        from seqpope.domains.music.audio import write_wav

        midi = file.with_suffix(".sounded.mid")
        write_midi(midi)
        write_wav(midi, file, soundfont=self.soundfont)
