"""What tests of this library and of applications on it need: networks that are real, or simulated."""
