"""Indirect Indexing: find a letter in a string, and the letter that stands so many places from it."""
