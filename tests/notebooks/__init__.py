"""The tests of the path from source to page."""
