"""Perception: image data, and classifiers on the same backbones that agents see through."""
