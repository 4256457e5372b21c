"""mis_lab: find out what the units of a vision network mean and how they work together.

Packages, in the direction the data flows (each imports only what stands left of it):
``core ← dataset ← model ← {metric, activations} ← {sae, mis} ← circuit ← report ← pipeline ← cli``.
"""

__version__ = "0.1.0"
