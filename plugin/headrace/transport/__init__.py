"""Connections: which call holds which, how they are opened and checked, and urllib3's classes over them."""
