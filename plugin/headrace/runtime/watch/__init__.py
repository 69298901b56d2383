"""Tells when the content of a watched file has changed.

`watcher` owns the thread, hears events and reads the files; `settling` decides when to read and whether a reading is a
change; `fingerprint` says what a file holds. Only the digest of a content counts: an event merely says when to look.
"""
