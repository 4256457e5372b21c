"""Where numbers go: files always, Weights & Biases as a mirror."""
