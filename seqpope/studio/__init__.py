"""The web studio: a page to hear, see and probe models, served on this machine."""
