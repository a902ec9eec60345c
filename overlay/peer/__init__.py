"""The peer layer: a node finds others, pushes to them, pulls from them, accepts, stores and forwards."""
