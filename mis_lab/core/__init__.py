"""What every other package stands on: artifacts and their keys, seeds, devices, errors, progress, statistics."""
