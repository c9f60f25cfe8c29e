"""What a scheduler can be asked: written in `_async` only; `make sync` makes `_sync` of it, for threads."""
