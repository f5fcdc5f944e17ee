"""The studio in a browser: `app`."""

from __future__ import annotations

from pathlib import Path

from seqpope.errors import SeqpopeError


def app(
    host: str = "127.0.0.1",
    port: int = 8642,
    runs: Path = Path("runs"),
    data_folder: Path = Path("data"),
    genes: Path | None = None,
) -> None:
    """Open the studio: a page on this machine to hear, see and probe models of music and DNA.

    Args:
        host: Address to listen at. Beyond this machine's own a token is asked for, which is part of the address
            that is shown.
        port: Port to listen at; 0 takes any that is free.
        runs: Folder of runs and experiments; their models and curves are shown beside the shipped models.
        data_folder: Folder of prepared data; its genomes can be looked at.
        genes: BED file of genes, so that a locus can be found by name.
    """
    import secrets

    if not 0 <= port <= 65535:
        raise SeqpopeError(f"--port must be from 0 to 65535, it is {port}")
    from seqpope.studio.server import LOCAL, Settings, run

    local = host in LOCAL
    settings = Settings(
        runs,
        data_folder,
        genes,
        hosts=LOCAL if local else (*LOCAL, host, *_names_of_this_machine()),
        token=None if local else secrets.token_urlsafe(24),
    )
    run(settings, host, port, lambda text: print(text, flush=True))


def _names_of_this_machine() -> tuple[str, ...]:
    """By which a browser elsewhere may call it."""
    import socket

    name = socket.gethostname()
    try:
        return (name, socket.getfqdn(), *{str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError:
        return (name,)
