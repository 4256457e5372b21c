"""Formats of other libraries, one file each: `read(path, settings)` gives the SAE with the codes it had there."""
