"""Environments: any Gymnasium id, Atari on ALE's native vector environment, and our own."""
