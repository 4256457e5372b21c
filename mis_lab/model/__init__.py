"""Networks, the places in them where activations are read (sites), and reading or replacing them."""
