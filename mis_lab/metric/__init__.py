"""How alike two images look: embeddings whose inner products or distances are perceptual similarities."""
