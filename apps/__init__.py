"""Applications that are started from the repository; the library does not need them."""
