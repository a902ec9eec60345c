"""Files: offered, stored, fetched over several circuits, verified and resumed."""
