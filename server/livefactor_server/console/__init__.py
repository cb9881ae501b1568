"""The web console: pages that show a running server to people.

`app` is an ASGI application. It is a client like any other: it asks a server over gRPC, with the
token of the person who logged in, and does no more than that token allows. Administrators can
change a model (`actions`). `sessions` holds who is logged in, `curves` what was measured while a
page is open, `pages` answers requests, `templates` and `static` are what a browser gets. All of it
comes from this folder, so a browser asks no other machine. `static` has two libraries, htmx and
uPlot, with their licences.
"""
