"""Sparse autoencoders: one contract, one file an architecture, training, evaluation, splicing."""
