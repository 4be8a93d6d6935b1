-- Whether the profile has registered the copy itself, and not only got it from a profile that was merged into it: what is
-- its own stays when the merge is undone. Of a copy that was registered before there was this column it is not known, and
-- undoing goes by the operation numbers alone.
ALTER TABLE devices
ADD COLUMN is_own boolean NOT NULL DEFAULT false;
