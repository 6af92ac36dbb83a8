"""Storage: the only place that opens a file or an object by its URI."""
