"""HTTP/1.1 as bytes: what is sent and what has come, without a socket or a clock.

In: the pieces that a driver has received, cut anywhere. Out: an answer's head, the bytes of its body without their
framing, and whether another answer may follow on the connection. `h1` is what drivers use; `head` is what the lines
of a head mean, `errors` what is raised. Nothing in here imports socket, ssl or time.
"""
