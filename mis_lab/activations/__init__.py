"""Activations of a network at its sites: extracted once, stored as memory maps, streamed; image pools of units."""
