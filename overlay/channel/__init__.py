"""Authenticated, encrypted channels over any connection: a pure engine and its small driver."""
