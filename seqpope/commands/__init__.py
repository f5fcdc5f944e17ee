"""The verbs of the command line, a module for each group of them.

Each verb is a function: its signature is the schema of its options and its docstring is their help. Nothing heavy
is imported before a verb runs.
"""
