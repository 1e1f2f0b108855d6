"""Where experience lives."""
