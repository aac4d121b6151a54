"""One file per engine, each a `Runner`; only the one that is measured is imported by the process that measures it."""
