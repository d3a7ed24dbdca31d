"""A cache of judge replies, as an engine around an engine."""
