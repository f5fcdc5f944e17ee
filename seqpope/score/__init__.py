"""`seqpope score`: likelihoods of DNA; one module a kind of input, likelihood.py: what they share."""
