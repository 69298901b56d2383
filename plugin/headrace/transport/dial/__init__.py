"""How a connection is opened, looked at and written to."""
