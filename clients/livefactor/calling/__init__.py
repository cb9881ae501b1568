"""Calls of a client: what is sent, to which of several servers, and when it is sent again.

Here a call is a *plan* (plans.py): a generator that says what to send and how long to wait, and
does neither. A connection carries plans out, with threads (blocking.py) or with an event loop
(aio/connection.py). So every client and its asyncio twin share all logic. A route (routes.py) knows
the servers and makes the plans. retries.py decides whether a call is tried again.
"""
