"""One architecture a file: an activation function and a loss over the contract of `mis_lab.sae.base`."""
