"""Tests; a package, so that no other one of this name that is installed is taken for it in a new process."""
