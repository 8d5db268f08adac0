"""The cache of keys and values: storage, the sequences' regions, reuse of prefixes, eviction."""
