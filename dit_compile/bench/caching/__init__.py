"""``ditc bench cache``: caching by ditc and by what others offer."""
