"""The store: typed buckets in memory, replicated over the ring."""
