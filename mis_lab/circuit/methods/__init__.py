"""How effects of nodes are estimated, one method a file."""
