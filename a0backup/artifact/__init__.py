"""Open artifacts and read them to their end, without writing any of their contents."""
