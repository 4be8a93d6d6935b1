-- The span of the call that left an intent, as a W3C traceparent, so that what a worker does for it is part of the call's
-- trace. NULL where nobody traces.
ALTER TABLE intents ADD COLUMN trace_parent text;
