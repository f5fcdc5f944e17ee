"""Four-part chorales on a grid of sixteenths: files, tokens and the two corpora."""
