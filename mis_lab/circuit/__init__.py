"""Sparse feature circuits: effects of nodes on an objective, circuits, and how faithful they are."""
