"""The pure engine of a transfer: what it asks for, of whom, over which circuits."""
