"""Texts that need no network, and the readers of all the others."""
