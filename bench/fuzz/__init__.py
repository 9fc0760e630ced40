"""Damaged and hostile files through the public readers: each is read, or refused with a ChatlmError."""
