"""The measuring: pgrecall, a hand-written loop and its rivals side by side, in one run, on a PostgreSQL of its own.

    make bench                     # everything; hours
    make bench ARGS=--quick        # every cell at a small size, to see that it works; its figures mean little

README.md beside this file says what each cell does and how to add a rival.
"""
