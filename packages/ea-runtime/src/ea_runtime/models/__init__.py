"""Model folders: layout, loading, checks, conversion, hashes."""
