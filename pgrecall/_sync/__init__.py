# Made by `make sync` of pgrecall/_async/__init__.py: change that, not this.
"""What a scheduler can be asked: written in `_async` only; `make sync` makes `_sync` of it, for threads."""
