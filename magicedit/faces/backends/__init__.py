"""One third-party library per file; each is imported only when its backend is used."""
