"""When the content of a watched file has changed."""
