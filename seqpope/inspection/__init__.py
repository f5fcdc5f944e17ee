"""The verb `inspect`: what trained attention makes of each frequency (arXiv 2509.10534, figures 3 and 4)."""
