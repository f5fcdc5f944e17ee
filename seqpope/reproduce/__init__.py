"""The paper's tables and figures, each trained, measured and written by one command."""
