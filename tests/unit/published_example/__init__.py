"""A package for the crawl's tests: one good module and others that go wrong when imported."""
