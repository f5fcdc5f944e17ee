"""Lines of BED files. What a line may say, and what becomes of one that is wrong, is its reader's to decide."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from seqpope.errors import SeqpopeError


def bed_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number, from 1, and the columns of each line, plain or gzipped, with tabs or else spaces between.

    Blank lines, comments, `track` and `browser` lines are passed over.

    Raises:
        SeqpopeError: the file cannot be read, is cut short, or is no text.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        # -sig: some editors begin a file with a mark, which would be part of the first contig's name.
        with (gzip.open if zipped else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                columns = [word.strip() for word in (line.split("\t") if "\t" in line else line.split())]
                if (
                    any(columns)
                    and not line.startswith("#")
                    and line.split(maxsplit=1)[0] not in ("track", "browser")
                ):
                    yield number, columns
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SeqpopeError(f"{path} is cut short or damaged ({error}): copy it again") from error
    except UnicodeDecodeError as error:
        raise SeqpopeError(f"{path} cannot be read as a BED file, it is no text: give another") from error
    except OSError as error:
        raise SeqpopeError(f"the BED file {path} cannot be read ({error.strerror or error})") from error
