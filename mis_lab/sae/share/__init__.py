"""SAEs for others: exported with a model card, taken over from other libraries, pushed to and pulled from a hub."""
