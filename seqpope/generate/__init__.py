"""The verbs `generate` and `harmonize`: one module a kind of sample, draw.py for what they share."""
