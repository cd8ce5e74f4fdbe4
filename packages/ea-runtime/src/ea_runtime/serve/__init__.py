"""`ea serve`: a queue of jobs that outlives kills, its workers, and the page and API in front of them.

The server and its workers share nothing but a state folder: SQLite and files. The server imports no torch.
"""
