"""What a fetch has on disk until it is whole."""
