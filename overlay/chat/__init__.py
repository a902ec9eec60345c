"""Group chat: sessions, participants, signed messages, posted files."""
