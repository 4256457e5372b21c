"""A run: what its stages work with, the stages, the page, and doing or skipping it."""
