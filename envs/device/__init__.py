"""Environments that live on the device: state, steps and observations never leave it."""
