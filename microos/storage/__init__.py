"""Log, snapshots and small files on a disk that may fail."""
