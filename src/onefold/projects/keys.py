"""API keys at work: making them, and letting their callers in."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from onefold.callers import REFUSED_IDS, Caller, Project
from onefold.db.pool import Database
from onefold.projects import store
from onefold.projects.rules import KEY_PREFIX, KeyText, secret_hash, split_key, unauthenticated

# A revoked key, or a changed project, is noticed everywhere within this time.
CACHE_SECONDS: Final = 10.0
_CACHED_KEYS: Final = 10_000


def new_key(project_id: str) -> str:
    """The text of a new key: a recognisable prefix, the project for people, an id, and 192 random bits."""
    return f"{KEY_PREFIX}_{project_id}_{secrets.token_hex(6)}_{secrets.token_hex(24)}"


class Authenticator:
    """Finds the caller of a key, and remembers it for 10 s: a call costs no look-up of its own.

    Unknown keys are not remembered, and a key is remembered by its hash. While PostgreSQL is away, what is remembered
    still holds until its time is over. Calls that need the same look-up at the same time share it: once in 10 s that is
    all of them.
    """

    def __init__(
        self,
        database: Database,
        forget_secret: bytes,
        refused_ids: frozenset[str] = REFUSED_IDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._refused_ids = refused_ids
        self._forget_secret = forget_secret
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._finding: dict[bytes, asyncio.Task[Caller]] = {}

    async def __call__(self, text: str) -> Caller:
        """The caller whose key this is. Raises UNAUTHENTICATED / API_KEY_INVALID."""
        digest = secret_hash(text)
        known = self._known.get(digest)
        if known is not None and self._clock() < known[0]:
            return known[1]
        key = split_key(text)
        finding = self._finding.get(digest)
        if finding is None:
            # A task of its own: it goes on if the call that began it is cancelled.
            finding = self._finding[digest] = asyncio.create_task(self._find(key, digest), name="key look-up")
            finding.add_done_callback(lambda task: self._found(digest, task))
        return await asyncio.shield(finding)

    async def _find(self, key: KeyText, digest: bytes) -> Caller:
        caller = await self._database.read(lambda connection: store.find_caller(connection, key))
        # Forgotten meanwhile, it may be what was true before: good for those who already waited, and not kept.
        kept = self._finding.get(digest) is asyncio.current_task()
        if caller is None:
            if kept:
                self._known.pop(digest, None)
            raise unauthenticated()
        project = replace(caller.project, forget_key=self._forget_key(caller.project), refused_ids=self._refused_ids)
        caller = replace(caller, project=project)
        if kept:
            seconds = CACHE_SECONDS if caller.seconds_left is None else min(CACHE_SECONDS, caller.seconds_left)
            self._known[digest] = (self._clock() + seconds, caller)
            self._known.move_to_end(digest)
            if len(self._known) > _CACHED_KEYS:
                self._known.popitem(last=False)
        return caller

    def _found(self, digest: bytes, task: asyncio.Task[Caller]) -> None:
        if self._finding.get(digest) is task:
            del self._finding[digest]
        if not task.cancelled():
            # If every call that waited was cancelled, nobody else asks for its error.
            task.exception()

    def _forget_key(self, project: Project) -> bytes:
        # A key for each project, so that the hashes of one person in two projects have nothing in common.
        return hmac.digest(self._forget_secret, (project.forget_name or project.project_id).encode(), "sha256")

    def forget(self, project_id: str) -> None:
        """Looks the callers of a project up again at their next call: a key or the project has changed."""
        # Whose look-ups are under way is not known yet.
        self._finding.clear()
        for digest, (_, caller) in list(self._known.items()):
            if caller.project.project_id == project_id:
                del self._known[digest]
