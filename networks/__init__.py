"""Torch modules: backbones and heads. They know shapes, not reinforcement learning."""
