"""An orders service in two forms, the two services it calls, and a story that shows what headrace does."""
