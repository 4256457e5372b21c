"""Activations of a network at its sites: extracted once, stored, streamed; image pools of units."""
