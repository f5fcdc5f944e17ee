"""Genomes."""
