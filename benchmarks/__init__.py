"""Speed and learning measured beside peers; `results/` holds what came out, and the README's tables come from there."""
