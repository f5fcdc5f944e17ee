"""Symbolic music."""
