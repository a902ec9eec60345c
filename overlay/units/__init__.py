"""Unit identifiers and locators, and the ERIS encoding of content. Pure."""
