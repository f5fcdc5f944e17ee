"""Data sets by domain: what files mean, and what a token stands for."""
