"""Piano performances: files, tokens and MAESTRO."""
