"""The message codec and text tokens. Pure."""
