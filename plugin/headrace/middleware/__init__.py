"""The inbound side: ASGI, WSGI, and an answer for each error."""
