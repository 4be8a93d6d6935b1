"""Every limit of the contract, with its unit in its name. The protos' comments state the same numbers."""

from __future__ import annotations

from datetime import timedelta

MESSAGE_BYTES = 4 * 1024 * 1024
METADATA_BYTES = 16 * 1024
# Calls and streams at a time over one connection.
CONNECTION_STREAMS = 1_000

EMAIL_BYTES = 254
USER_ID_CHARACTERS = 52
USER_ID_WITH_PLACEHOLDER_BYTES = 256
ANONYMOUS_ID_BYTES = 256
NAME_BYTES = 100
EVENT_ID_CHARACTERS = 128
REQUEST_ID_CHARACTERS = 128
TOKEN_BYTES = 1024

EVENT_DATA_BYTES = 100_000
DEVICE_FIELDS_BYTES = 16_000
DATA_FIELDS_BYTES = 1_000_000
DATA_DEPTH = 16
DATA_KEYS_PER_OBJECT = 512

EVENT_ITEMS = 200
ITEM_ID_BYTES = 256
ITEM_NAME_BYTES = 256
BATCH_EVENTS = 1_000
BATCH_PROFILES = 1_000
# Batches of one stream that wait to be stored; more are not read.
STREAM_BATCHES = 4
FILTER_NAMES = 100
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 500
PAGE_BYTES = 3 * 1024 * 1024
DEVICES_PER_PROFILE = 500
CRITERIA_PER_PROJECT = 50
# The highest limit of calls or events that a project may be given.
RATE_MAX_PER_SECOND = 1_000_000
CRITERION_BYTES = 32_000
EVALUATED_EVENTS = 1_000
REPLAY_ITEMS = 1_000
DEVICE_ID_BYTES = 256
VISITOR_EVENTS = 1_000
REPORTED_EVENTS = 100

EVENT_AHEAD = timedelta(hours=24)
ANONYMOUS_LIFETIME = timedelta(days=30)
LINK_GRACE = timedelta(minutes=5)
BACKFILL_AGE = timedelta(minutes=5)
EVENT_ID_LIFETIME = timedelta(days=35)
CONSENT_LIFETIME = timedelta(days=365)
REQUEST_ID_LIFETIME = timedelta(hours=24)

# Of the wrong fields that an error lists, and of a text of the caller's that it repeats: it has to fit into trailers.
ERROR_FIELDS_BYTES = 3_000
ERROR_TEXT_BYTES = 100

CALL_DEFAULT_SECONDS = 10.0
CALL_MAX_SECONDS = 30.0
# A stream whose caller reads nothing for this long is ended.
STREAM_WRITE_SECONDS = 30.0
STREAM_KEY_CHECK_SECONDS = 10.0

# How long before its link a visitor's event may have happened and still trigger (A9).
TRIGGER_AGE = timedelta(hours=72)
TRIGGER_LIFETIME = timedelta(days=7)
TRIGGER_PAGE_EVENTS = 100
# A stream of triggers with nothing to send tells its cursor this often.
TRIGGER_IDLE_SECONDS = 10.0
# How many entries of one kind are looked at for one page of a whole project's activity.
ACTIVITY_LOOK_ROWS = 1_000
# An entry of the activity log does not count as many events as this that a worker has still to bring. No more than a
# chunk has: what is counted where it lies is then counted once.
ACTIVITY_COUNT_EVENTS = 5_000
