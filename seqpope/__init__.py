"""seqpope: symbolic music and genomes with polar-coordinate position embeddings (PoPE)."""

__version__ = "0.1.0.dev0"
